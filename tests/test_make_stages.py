"""`make stages`, smaller: stage 2 on the stage-1 model's own corrected descriptions is better than stage 1."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from minigpt4.curate.ledger import Tally, read_events, sample_states
from tests.test_quickstart import run

CURATION = ("--cfg-path", "train_configs/scenes_curation.yaml")


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("output")
    folder = output / "stages"
    scenes, data = folder / "scenes", folder / "data"
    run(output, "dataset/make_shards.py", "--out", str(data), "--scenes", "860")
    shards = [f"datasets.{name}.shards={data}/{name}/{name}_dataset/*.tar" for name in ("laion", "cc_sbu")]
    options = ("--options", *shards, f"run.run_dir={folder}/train1", "run.max_epoch=2")
    run(output, "train.py", "--cfg-path", "train_configs/scenes_stage1.yaml", *options)
    shutil.copy(folder / "train1" / "checkpoint_1.pth", folder / "stage1.pth")
    few = ("--options", "curation.images=160", "curation.describe.samples=7")
    for step in ("describe", "refine", "filter"):
        run(output, "-m", "minigpt4.curate", step, *CURATION, *few)
    run(output, "-m", "minigpt4.curate", "review", "--accept-all", *CURATION)
    run(output, "-m", "minigpt4.curate", "export", *CURATION)
    run(output, "train.py", "--cfg-path", "train_configs/scenes_stage2.yaml", "--options", "run.max_epoch=2")
    shutil.copy(folder / "train2" / "checkpoint_1.pth", folder / "stage2.pth")
    sizes = ("--train", "0", "--val", "0", "--test", "100", "--seed", "7")
    run(output, "dataset/make_scenes.py", "--out", str(scenes), *sizes)
    annotations = ("--annotations", str(scenes / "flickr_annotations_30k.csv"))
    images = ("--images", str(scenes / "images"), "--out", str(scenes / "flickr30k.json"))
    run(output, "prepare_flickr30k.py", *annotations, *images)
    both = ("--ckpt", str(folder / "stage1.pth"), str(folder / "stage2.pth"))
    run(output, "eval_scripts/eval_flickr30k.py", "--cfg-path", "eval_configs/scenes_stages.yaml", *both)
    return folder


@pytest.mark.slow
def test_stage_2_beats_stage_1(stages: Path) -> None:
    rows: list[dict[str, Any]] = json.loads((stages / "metrics.json").read_text())["rows"]
    before, after = rows
    assert after["object_accuracy"] > before["object_accuracy"] + 0.2
    assert after["all_objects_accuracy"] > before["all_objects_accuracy"] + 0.05
    assert after["Bleu_4"] > before["Bleu_4"]
    assert after["repetition"] < before["repetition"] - 0.2
    assert after["fragments"] < 0.05
    assert after["object_accuracy_shuffled"] < 0.15


@pytest.mark.slow
def test_no_sample_is_lost(stages: Path) -> None:
    tally = Tally.of(sample_states(read_events(stages / "curation" / "ledger.jsonl")))
    exported = json.loads((stages / "cc_sbu_align" / "filter_cap.json").read_text())["annotations"]
    assert tally.drawn == 160 == tally.accepted + tally.rejected.total()
    assert tally.accepted == len(exported) > 80

"""The commands of the quick start, smaller: draw, prepare, train, evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minigpt4.common.files import PROJECT
from tests.launch import launch

STAGE1 = "minigpt4/assets/tiny/stage1.pth"


def run(output: Path, *command: str) -> str:
    done = launch(*command, cwd=PROJECT, environment={"MINIGPT4_OUTPUT": str(output), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    output = tmp_path_factory.mktemp("output")
    folder = output / "quickstart"
    scenes = folder / "scenes"
    sizes = ("--train", "400", "--val", "20", "--test", "60", "--seed", "1")
    run(output, "dataset/make_scenes.py", "--out", str(scenes), *sizes)
    annotations = str(scenes / "flickr_annotations_30k.csv")
    images = ("--images", str(scenes / "images"), "--out", str(scenes / "flickr30k.json"))
    run(output, "prepare_flickr30k.py", "--annotations", annotations, *images)
    run(output, "train.py", "--cfg-path", "train_configs/quickstart.yaml", "--options", "run.max_epoch=5")
    ckpt = (STAGE1, str(folder / "train" / "checkpoint_4.pth"))
    shown = run(output, "eval_scripts/eval_flickr30k.py", "--cfg-path", "eval_configs/quickstart.yaml", "--ckpt", *ckpt)
    return folder, shown


def test_training_makes_captions_fit_the_image(quickstart: tuple[Path, str]) -> None:
    rows: list[dict[str, Any]] = json.loads((quickstart[0] / "metrics.json").read_text())["rows"]
    before, after = rows
    assert after["CIDEr"] > before["CIDEr"] + 1
    assert after["Bleu_4"] > before["Bleu_4"] + 0.2
    assert after["object_accuracy"] > 0.5
    assert before["object_accuracy"] < 0.3
    assert after["object_accuracy_shuffled"] < 0.15


def test_the_last_lines_say_where_everything_is(quickstart: tuple[Path, str]) -> None:
    folder, shown = quickstart
    assert [line.split(":")[0] for line in shown.splitlines()[-4:]] == ["Scores", "Plot", "Report", "Chat"]
    assert f"--ckpt {folder}/train/checkpoint_4.pth" in shown
    assert all((folder / name).is_file() for name in ("metrics.json", "metric_trends.png", "report.html"))

"""The commands of `make quickstart-v2`, much smaller: a few steps on few scenes, and some questions of each score."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dataset.make_pope import main as make_pope
from dataset.make_scenes import main as make_scenes
from minigpt4.__main__ import main
from minigpt4.common.files import PROJECT
from minigpt4.scenes.questions import VQA_KINDS
from tests.runners.project import logging_restored


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("output")
    folder = output / "quickstart_v2"

    def run(*command: str, options: Sequence[str] = ()) -> None:
        output_root = f"paths.output_root={output}"
        assert main([*command, "--options", output_root, "run.device=cpu", *options]) == 0

    for name, train, val, test, first in (("scenes", "60", "8", "0", "0"), ("test", "0", "0", "20", "68")):
        sizes = ("--train", train, "--val", val, "--test", test, "--first", first, "--questions")
        assert make_scenes(["--out", str(folder / name), *sizes]) == 0
    with pytest.MonkeyPatch.context() as patch, logging_restored():
        asked = folder / "test"
        out = ("--out", str(asked / "questions" / "pope.jsonl"))
        patch.setattr(sys, "argv", ["make_pope.py", "--objects", str(asked / "scenes.json"), *out])
        make_pope()
        short = ("run.iters_per_epoch=10", "run.batch_size=8", "run.warmup_steps=5", "run.num_workers=0")
        run("train", "--cfg-path", str(PROJECT / "train_configs" / "quickstart_v2.yaml"), options=short)
        run("eval", "--cfg-path", str(PROJECT / "eval_configs" / "quickstart_v2.yaml"), "--limit", "16")
    return folder


def read(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "metrics.json").read_text()))


@pytest.mark.slow
def test_training_learns_from_a_language_model_that_knows_the_answers_forms(folder: Path) -> None:
    first, last = (json.loads(line)["val_loss"] for line in (folder / "train" / "log.txt").read_text().splitlines())
    assert last < first < 2  # a language model of random weights begins at ln 750 = 6.6


@pytest.mark.slow
def test_every_score_stands_beside_that_of_shuffled_images_and_no_image_was_trained_on(folder: Path) -> None:
    expected = {
        "caption": ("CIDEr", "CHAIR_i", "CHAIR_s"),
        "vqa": ("accuracy",),
        "identify": ("accuracy",),
        "pope": ("accuracy", "F1"),
        "refer": ("IoU_50",),
        "detection": ("AP50",),
    }
    for name, keys in expected.items():
        found = read(folder / "results" / f"{name}_test")
        (row,) = found["rows"]
        assert {key + suffix for key in keys for suffix in ("", "_shuffled")} <= set(row), name
        assert found["leaks"]["epoch 1"]["ids"] == 0, name
    (kinds,) = read(folder / "results" / "vqa_test")["kinds"].values()
    assert set(kinds) == set(VQA_KINDS)

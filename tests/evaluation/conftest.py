"""Stand-ins for Java, and captions small enough to score by hand."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minigpt4.evaluation import java
from minigpt4.evaluation.predictions import Prediction, Protocol
from minigpt4.evaluation.results import CheckpointResult
from minigpt4.evaluation.statistics import Scores

FakeJava = Callable[..., Path]
MoveFolder = Callable[[str, Path], Path]

IDS = [f"{i}" for i in range(6)]
HOSTILE = '</script><script>alert("x")</script> & <b>bold</b> $title'
"""Text that would break a page that does not escape it."""


@pytest.fixture
def fake_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeJava:
    """Put a `java` first on PATH that answers `-version` and otherwise runs the given shell lines."""

    def make(lines: str, version: str = "echo 'fake version' >&2; exit 0") -> Path:
        folder = tmp_path / f"fake{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        program = folder / "java"
        program.write_text(f'#!/bin/sh\nif [ "$1" = "-version" ]; then {version}; fi\n{lines}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return program

    return make


@pytest.fixture
def move_folder(monkeypatch: pytest.MonkeyPatch) -> MoveFolder:
    """Copy one part of pycocoevalcap elsewhere and let the project find it there."""

    def move(name: str, target: Path) -> Path:
        real = java.metric_folder
        shutil.copytree(real(name), target)

        def find(asked: str) -> Path:
            return target if asked == name else real(asked)

        monkeypatch.setattr("minigpt4.evaluation.java.metric_folder", find)
        monkeypatch.setattr("minigpt4.evaluation.meteor_spice.metric_folder", find)
        return target

    return move


@pytest.fixture
def references() -> dict[str, list[str]]:
    """Two images: BLEU-1 and ROUGE-L of `predictions` are worked out in test_caption.py."""
    return {"1": ["A dog runs fast."], "2": ["A black cat.", "The cat."]}


@pytest.fixture
def predictions() -> dict[str, str]:
    """One caption for each image of `references`."""
    return {"1": "a dog runs", "2": "a red cat"}


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Images 0 to 3 of `IDS` (the first with transparency), a broken file for 4, and none for 5."""
    folder = tmp_path / "the images"
    folder.mkdir()
    Image.new("RGBA", (500, 200), (0, 0, 0, 0)).save(folder / "0.png")
    for key in IDS[1:4]:
        Image.new("RGB", (500, 200), "red").save(folder / f"{key}.png")
    (folder / "4.png").write_bytes(b"no image")
    return folder


def make_results(labels: tuple[str, ...] = ("stage 1", "epoch 0")) -> list[CheckpointResult]:
    """Image i of `IDS` scores i / 10 at first, and 1 more with every checkpoint."""
    made = []
    for place, label in enumerate(labels):
        per_image = {key: {"Bleu_4": 0.1, "CIDEr": int(key) / 10 + place} for key in IDS}
        corpus = {"Bleu_4": 0.1, "CIDEr": float(np.mean([v["CIDEr"] for v in per_image.values()]))}
        listed = [Prediction(k, HOSTILE if k == "3" else f"{label} {k}", f"{k}.png", ("A dog.", HOSTILE)) for k in IDS]
        more = {"object_accuracy": 0.5 + place / 10}
        made.append(CheckpointResult(label, Scores(corpus, per_image), listed, more))
    return made


def make_protocol() -> Protocol:
    """The protocol of `make_results`."""
    return Protocol.of({key: ["A dog.", HOSTILE] for key in IDS}, ["bleu", "cider"], dataset="scenes", split="test")

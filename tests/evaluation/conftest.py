"""Stand-ins for Java, and captions small enough to score by hand."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from minigpt4.evaluation import java as ptb

FakeJava = Callable[..., Path]


@pytest.fixture
def fake_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeJava:
    """Put a `java` first on PATH that answers `-version` and otherwise runs the shell lines given."""

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
def moved_folder(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], Path]:
    """Copy one part of pycocoevalcap elsewhere and let the project find it there."""

    def move(name: str, target: Path) -> Path:
        real = ptb.metric_folder
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

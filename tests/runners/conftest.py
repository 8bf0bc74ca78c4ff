"""Training runs that several tests look at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from minigpt4.common.config import load_config
from tests.runners.project import Project

LONG = ("run.iters_per_epoch=40", "run.max_epoch=2", "run.warmup_steps=10")
"""Long enough to be killed on the way."""


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The tiny project; each test uses run folders of its own in it."""
    return Project.make(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="session")
def uninterrupted(project: Project) -> str:
    """What the LONG run prints in one go, by itself; it lies in `long`."""
    status, output = project.train("run.run_dir=long", *LONG)
    assert status == 0, output
    return output


@pytest.fixture
def train_here(project: Project, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Train in this process with options; returns the run folder named by `run.run_dir` in them."""
    from minigpt4.runners.assembly import train

    monkeypatch.chdir(project.folder)

    def run(*options: str, dry_run: bool = False) -> Path:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            loaded = load_config("config.yaml", list(options))
            train(loaded, dry_run=dry_run)
        finally:
            torch.set_num_threads(threads)
        return project.folder / (loaded.config.run.run_dir or "")

    return run

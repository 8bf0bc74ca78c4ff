"""Training runs that several tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runners.project import Project

LONG = ("run.iters_per_epoch=40", "run.max_epoch=2", "run.warmup_steps=10", "run.trackers=[tensorboard]")
"""Long enough to be killed before the end."""
PAIR = (*LONG, "run.batch_size=2", "run.save_freq=7")
"""The same for two processes."""


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The tiny project; each test uses run folders of its own in it."""
    return Project.make(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="session")
def uninterrupted(project: Project) -> Path:
    """The folder of an uninterrupted LONG run of one process."""
    return project.train_here("run.run_dir=long", *LONG)


@pytest.fixture(scope="session")
def pair(project: Project) -> Path:
    """The folder of an uninterrupted PAIR run."""
    status, output = project.train(*PAIR, "run.run_dir=pair", processes=2)
    assert status == 0, output
    return project.folder / "pair"


@pytest.fixture
def train_here(project: Project, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Trains in this process with options, in the project's folder; returns the run folder."""
    monkeypatch.chdir(project.folder)
    return project.train_here

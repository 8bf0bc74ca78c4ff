"""Training runs that several tests look at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runners.project import Project

LONG = ("run.iters_per_epoch=40", "run.max_epoch=2", "run.warmup_steps=10", "run.trackers=[tensorboard]")
"""Long enough to be killed on the way."""
PAIR = (*LONG, "datasets.pictures.batch_size=2", "run.save_freq=7")
"""The same for two processes."""


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


@pytest.fixture(scope="session")
def pair(project: Project) -> Path:
    """The folder of a PAIR run that nobody disturbs."""
    status, output = project.train(*PAIR, "run.run_dir=undisturbed", processes=2)
    assert status == 0, output
    return project.folder / "undisturbed"


@pytest.fixture
def train_here(project: Project, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Train in this process with options, the project's folder being the current one; returns the run folder."""
    monkeypatch.chdir(project.folder)
    return project.train_here

"""A run is the same to the last bit on any number of processes that shares its micro-batches."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from minigpt4.models.minigpt4 import MiniGPT4
from tests.launch import launch
from tests.runners.project import REPOSITORY, Project, assert_same_run, untimed_epochs

OPTIONS = (
    "run.global_batch=12",
    "run.batch_size=1",
    "run.iters_per_epoch=3",
    "run.save_freq=2",
    "run.amp=off",
    "run.log_freq=100",
)
WITH_DROPOUT = f"""
import runpy
from tests.runners.test_global_batch import add_dropout
add_dropout()
runpy.run_path({str(REPOSITORY / "train.py")!r}, run_name="__main__")
"""
"""train.py with a model that draws random numbers in training."""
plain = MiniGPT4.project


def project_with_dropout(self: MiniGPT4, queries: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.dropout(plain(self, queries), 0.2, self.training)


def add_dropout() -> None:
    MiniGPT4.project = project_with_dropout  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def alone(project: Project) -> Path:
    """The folder of the run on one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MiniGPT4, "project", project_with_dropout)
        return project.train_here("run.run_dir=alone", *OPTIONS)


def share(project: Project, run: str, processes: int, *options: str) -> Path:
    """The same run on several processes."""
    script = project.folder / "with_dropout.py"
    script.write_text(WITH_DROPOUT)
    command = [str(script), "--cfg-path", "config.yaml", "--options", *OPTIONS, f"run.run_dir={run}", *options]
    done = launch(*command, ranks=processes, cwd=project.folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return project.folder / run


def assert_same_files(folder: Path, expected: Path, *names: str) -> None:
    for name in names:
        assert_same_run(folder / name, expected / name)
    assert untimed_epochs(folder) == untimed_epochs(expected)


@pytest.mark.distributed
@pytest.mark.parametrize("processes", [2, *(pytest.param(number, marks=pytest.mark.slow) for number in (3, 4))])
def test_checkpoints_are_the_same(project: Project, alone: Path, processes: int) -> None:
    folder = share(project, f"shared_{processes}", processes)
    assert_same_files(folder, alone, *(path.name for path in alone.glob("*.pth")))
    parts = f"1 per micro-batch x {12 // processes} accumulated x {processes} processes"
    assert f"global batch: 12 ({parts})" in (folder / "train.log").read_text()


@pytest.mark.distributed
def test_a_run_continues_within_an_epoch_on_two_processes(project: Project, alone: Path) -> None:
    folder = project.folder / "continued"
    folder.mkdir()
    shutil.copy(alone / "checkpoint_last.pth", folder)
    share(project, "continued", 2, "run.resume_ckpt_path=auto")
    log = (folder / "train.log").read_text()
    assert "resumed from continued/checkpoint_last.pth: epoch 1, step 1 of it" in log
    assert "difference" not in log
    assert_same_files(folder, alone, "checkpoint_1.pth", "checkpoint_best.pth")

"""A run is the same to the last bit on any number of processes that shares its micro-batches."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from minigpt4.common.checkpoint import read_checkpoint
from tests.runners.project import Project, assert_same_run, untimed_epochs

OPTIONS = (
    "model.lora.r=2",
    "model.lora.dropout=0.3",  # random numbers in every micro-batch
    "run.global_batch=12",
    "run.batch_size=1",
    "run.iters_per_epoch=3",
    "run.save_freq=2",
    "model.precision=float32",
    "run.log_freq=100",
)


@pytest.fixture(scope="module")
def alone(project: Project) -> Path:
    """The folder of the run on one process."""
    return project.train_here("run.run_dir=alone", *OPTIONS)


def share(project: Project, run: str, processes: int, *options: str) -> Path:
    """The folder of the same run on several processes."""
    status, output = project.train(*OPTIONS, f"run.run_dir={run}", *options, processes=processes)
    assert status == 0, output
    return project.folder / run


def assert_same_files(folder: Path, expected: Path, *names: str) -> None:
    for name in names:
        assert_same_run(folder / name, expected / name)
        weights = Path(name).with_suffix(".safetensors")  # a .pth file also names its run's folder
        assert (folder / weights).read_bytes() == (expected / weights).read_bytes()
    assert untimed_epochs(folder) == untimed_epochs(expected)


@pytest.mark.distributed
@pytest.mark.parametrize("processes", [2, *(pytest.param(number, marks=pytest.mark.slow) for number in (3, 4))])
def test_checkpoints_are_the_same(project: Project, alone: Path, processes: int) -> None:
    folder = share(project, f"shared_{processes}", processes)
    assert_same_files(folder, alone, *(path.name for path in alone.glob("*.pth")))
    parts = f"1 per micro-batch x {12 // processes} accumulated x {processes} processes"
    assert f"global batch: 12 ({parts})" in (folder / "train.log").read_text()


@pytest.mark.distributed
@pytest.mark.slow
def test_a_run_continues_within_an_epoch_on_two_processes(project: Project, alone: Path) -> None:
    folder = project.folder / "continued"
    folder.mkdir()
    shutil.copy(alone / "checkpoint_last.pth", folder)
    share(project, "continued", 2, "run.resume_ckpt_path=auto", "model.recompute_llm=true")
    log = (folder / "train.log").read_text()
    assert "resumed from continued/checkpoint_last.pth: epoch 1, step 1 of it" in log
    assert "difference" not in log
    assert_same_files(folder, alone, "checkpoint_1.pth", "checkpoint_best.pth")


@pytest.mark.distributed
@pytest.mark.slow
def test_adapters_stay_whole_beside_a_sharded_language_model(project: Project, alone: Path) -> None:
    folder = share(project, "sharded_with_adapters", 2, "run.shard_llm=all")
    assert "each process holds 1/2 of the language model's weights" in (folder / "train.log").read_text()
    ours, theirs = (read_checkpoint(path / "checkpoint_1.pth")["model"] for path in (folder, alone))
    assert len([name for name in ours if ".lora_" in name]) == 12
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)  # each moved by some 1e-3

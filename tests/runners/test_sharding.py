"""A language model sharded among ranks trains the projection as complete copies do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minigpt4.common.checkpoint import read_checkpoint
from tests.runners.conftest import PAIR
from tests.runners.project import Project, read_epochs, tensorboard_scalars


@pytest.mark.distributed
@pytest.mark.slow
def test_the_same_curve_weights_and_files_as_with_complete_copies(project: Project, pair: Path) -> None:
    status, output = project.train(*PAIR, "run.run_dir=sharded", "run.shard_llm=all", processes=2)
    assert status == 0, output
    assert "each process holds 1/2 of the language model's weights" in output
    sharded = project.folder / "sharded"
    expected, found = (dict(tensorboard_scalars(run)) for run in (pair, sharded))
    assert list(found) == list(expected) == list(range(80))
    assert max(abs(found[step] - expected[step]) for step in expected) < 1e-4
    for one, other in zip(*(read_epochs(folder) for folder in (pair, sharded)), strict=True):
        assert other["val_loss"] == pytest.approx(one["val_loss"], abs=1e-5)
    assert {file.name for file in sharded.iterdir()} == {file.name for file in pair.iterdir()}
    first, second = (read_checkpoint(folder / "checkpoint_1.pth") for folder in (pair, sharded))
    assert list(first) == list(second) and list(first["model"]) == list(second["model"])
    torch.testing.assert_close(second["model"], first["model"], rtol=0, atol=1e-5)
    torch.testing.assert_close(second["optimizer"], first["optimizer"], rtol=1e-3, atol=1e-5)


@pytest.mark.distributed
def test_a_run_resumes_without_sharding_and_validates_fewer_images_than_ranks(tmp_path: Path) -> None:
    """One image to validate on: the second rank has none, and computes all the same."""
    project = Project.make(tmp_path, train=8, val=1)
    options = ("run.run_dir=run", "run.batch_size=2")
    status, output = project.train(*options, "run.shard_llm=node", "run.max_epoch=1", processes=2)
    assert status == 0, output
    (epoch,) = read_epochs(tmp_path / "run")
    project.train_here(*options, "run.batch_size=4", "run.max_epoch=2", "run.resume_ckpt_path=auto")
    again = read_epochs(tmp_path / "run")
    assert again[0] == epoch and len(again) == 2
    assert 0 < again[1]["val_loss"] < 2 * epoch["val_loss"]

"""A resumed run is the run that was never interrupted, bit for bit."""

from __future__ import annotations

import json
import logging
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minigpt4.common.checkpoint import read_checkpoint, write_checkpoint
from minigpt4.common.errors import CheckpointError, ConfigError
from minigpt4.common.schema import RunConfig
from minigpt4.runners.checkpoints import (
    check_same_run,
    find_resume_point,
    latest_valid_checkpoint,
    rng_state,
    set_rng_state,
)
from tests.runners.conftest import LONG
from tests.runners.project import LOG_LINE, Project, losses

Train = Callable[..., Path]
SHORT = ("run.iters_per_epoch=5", "run.save_freq=4", "run.amp=off")


def assert_same(one: Any, two: Any, where: str = "") -> None:
    """Equality to the last bit of nested values."""
    if isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_same(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two), where
        for number, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_same(a, b, f"{where}[{number}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two), where
    else:
        assert one == two, where


def assert_same_run(one: dict[str, Any], two: dict[str, Any]) -> None:
    """Two checkpoints agree in everything but where they lie and how long they took."""
    for key in ("model", "optimizer", "scaler", "epoch", "step", "rng", "metadata", "run"):
        assert_same(one[key], two[key], key)
    for key in ("best_val_loss", "best_epoch", "skipped_in_a_row"):
        assert one["progress"][key] == two["progress"][key]


TIMED = {"seconds", "samples_per_second", "tokens_per_second", "padded_tokens_per_second", "mfu"}


def epochs(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMED} for line in lines]


@pytest.fixture(scope="module")
def whole(project: Project) -> Path:
    """A run of two epochs in one go, with a resume point in the middle of the second."""
    return project.train_here(*SHORT, "run.run_dir=whole")


@pytest.mark.parametrize(("name", "step"), [("checkpoint_0.pth", 5), ("checkpoint_last.pth", 8)])
def test_resume_at_the_end_and_in_the_middle_of_an_epoch(
    whole: Path, train_here: Train, project: Project, name: str, step: int
) -> None:
    folder = project.folder / f"resumed_at_{step}"
    folder.mkdir()
    shutil.copy(whole / name, folder / name)
    shutil.copy(whole / "log.txt", folder / "log.txt")  # its second line is written anew, not twice
    assert read_checkpoint(folder / name)["step"] == step

    train_here(*SHORT, f"run.resume_ckpt_path={folder.name}/{name}", "run.log_freq=3", "run.num_workers=1")

    assert_same_run(read_checkpoint(folder / "checkpoint_1.pth"), read_checkpoint(whole / "checkpoint_1.pth"))
    assert epochs(folder) == epochs(whole)


def test_auto_passes_over_a_truncated_checkpoint(whole: Path, train_here: Train, project: Project) -> None:
    folder = project.folder / "truncated"
    folder.mkdir()
    shutil.copy(whole / "checkpoint_0.pth", folder)
    for name in ("checkpoint_1.pth", "checkpoint_last.pth"):
        (folder / name).write_bytes((whole / name).read_bytes()[:-1000])

    train_here(*SHORT, "run.run_dir=truncated", "run.resume_ckpt_path=auto")

    assert_same_run(read_checkpoint(folder / "checkpoint_1.pth"), read_checkpoint(whole / "checkpoint_1.pth"))


def test_broken_checkpoints_are_named(whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert latest_valid_checkpoint(tmp_path) is None
    shutil.copy(whole / "checkpoint_0.pth", tmp_path)
    (tmp_path / "checkpoint_1.pth").write_bytes((whole / "checkpoint_1.pth").read_bytes()[:5000])
    with caplog.at_level(logging.WARNING):
        assert latest_valid_checkpoint(tmp_path) == tmp_path / "checkpoint_0.pth"
    assert "checkpoint_1.pth is truncated" in caplog.text
    (tmp_path / "checkpoint_0.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole"):
        latest_valid_checkpoint(tmp_path)


def test_a_finished_run_says_so(whole: Path, train_here: Train) -> None:
    before = (whole / "checkpoint_1.pth").stat().st_mtime_ns
    train_here(*SHORT, "run.run_dir=whole", "run.resume_ckpt_path=auto")
    assert (whole / "checkpoint_1.pth").stat().st_mtime_ns == before
    assert "all 2 epochs are done already; raise run.max_epoch" in (whole / "train.log").read_text()


def test_auto_in_an_empty_folder_starts_from_the_beginning(train_here: Train, whole: Path) -> None:
    folder = train_here(*SHORT, "run.run_dir=fresh", "run.resume_ckpt_path=auto", "run.max_epoch=2")
    assert_same_run(read_checkpoint(folder / "checkpoint_1.pth"), read_checkpoint(whole / "checkpoint_1.pth"))


def test_another_run_is_refused_with_every_key(whole: Path, train_here: Train, project: Project) -> None:
    changes = ("run.init_lr=2e-3", "run.seed=7", "datasets.pictures.batch_size=2")
    with pytest.raises(ConfigError) as caught:
        train_here(*SHORT, *changes, "run.resume_ckpt_path=whole/checkpoint_0.pth")
    message = str(caught.value)
    assert "run.init_lr: 0.001 then, 0.002 now" in message
    assert "run.seed: 42 then, 7 now" in message
    assert "global_batch: 4 then, 2 now" in message
    assert "model.ckpt=" in message


def test_harmless_differences_are_allowed_and_telling_ones_are_told(caplog: pytest.LogCaptureFixture) -> None:
    identity = {"steps_per_epoch": 5, "global_batch": 4, "world_size": 2, "data": {"a": "24 records, abc"}}
    saved = {"config": {"run": {"num_workers": 4, "max_epoch": 2, "seed": 1}, "paths": {"data_root": "x"}}}
    now = {"run": {"num_workers": 0, "max_epoch": 3, "seed": 1, "added_since": 5}, "paths": {"data_root": "y"}}
    with caplog.at_level(logging.WARNING):
        check_same_run(saved | {"run": identity}, now, identity | {"world_size": 1}, Path("c.pth"))
    assert "run.max_epoch: 2 then, 3 now" in caplog.text
    assert "processes: 2 then, 1 now" in caplog.text
    assert "num_workers" not in caplog.text
    with pytest.raises(ConfigError, match=r"data: .*abc.* then, .*def.* now"):
        check_same_run(saved | {"run": identity}, now, identity | {"data": {"a": "24 records, def"}}, Path("c.pth"))


def test_weights_alone_and_auto_without_a_folder_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "published.pth", {"model": {}, "optimizer": {}, "config": {}, "epoch": 4})
    with pytest.raises(CheckpointError, match=r"no state of a run.*model\.ckpt="):
        find_resume_point(RunConfig(resume_ckpt_path=str(tmp_path / "published.pth")))
    with pytest.raises(ConfigError, match=r"auto looks into run\.run_dir"):
        find_resume_point(RunConfig(resume_ckpt_path="auto"))


def test_random_generators_come_back_through_a_file(tmp_path: Path) -> None:
    np.random.standard_normal()  # leaves a cached number behind, which is part of the state
    random.gauss(0, 1)
    write_checkpoint(tmp_path / "rng.pth", {"rng": rng_state()})
    expected = (random.gauss(0, 1), random.random(), np.random.standard_normal(3).tolist(), torch.randn(3).tolist())
    set_rng_state(read_checkpoint(tmp_path / "rng.pth")["rng"])
    again = (random.gauss(0, 1), random.random(), np.random.standard_normal(3).tolist(), torch.randn(3).tolist())
    assert again == expected


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_on_the_way(project: Project, uninterrupted: str, number: signal.Signals) -> None:
    run = f"killed_by_{number.name}"
    options = (f"run.run_dir={run}", *LONG, "run.num_workers=1", "run.save_freq=7")
    process = project.start(*options)
    printed = ""
    assert process.stdout is not None
    for line in process.stdout:
        printed += line
        match = LOG_LINE.search(line)
        if match and int(match["iteration"]) == 17:
            process.send_signal(number)
            break
    printed += process.stdout.read()
    process.wait(timeout=60)
    if number is signal.SIGTERM:
        assert process.returncode == 128 + signal.SIGTERM
        assert f"go on with --options run.resume_ckpt_path={run}/checkpoint_last.pth" in printed
    assert not (project.folder / run / "checkpoint_1.pth").exists()
    assert "Traceback" not in printed

    project.train_here(*options, "run.resume_ckpt_path=auto")
    assert_same_run(project.checkpoint(run, "checkpoint_1.pth"), project.checkpoint("long", "checkpoint_1.pth"))
    assert losses(uninterrupted) == losses((project.folder / run / "train.log").read_text())
    assert epochs(project.folder / run) == epochs(project.folder / "long")

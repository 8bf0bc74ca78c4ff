"""Attempts of one launch find each other, and nothing else."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from minigpt4.common.checkpoint import write_checkpoint
from minigpt4.common.distributed import Processes
from minigpt4.common.errors import ConfigError
from minigpt4.common.schema import RunConfig
from minigpt4.runners.checkpoints import RESUME_KEYS
from minigpt4.runners.launch import MARK, Launch, Mark, own_agent

T = TypeVar("T")
ALONE = Processes(device=torch.device("cpu"))
Worker = Callable[..., None]


class Seen(Processes):
    """The main process among others, whose answers are known beforehand."""

    answers: list[list[Any]]

    def __init__(self, *others: list[Any]) -> None:
        super().__init__(device=torch.device("cpu"))
        object.__setattr__(self, "answers", list(others))

    def gather(self, value: T) -> list[T]:
        return [value, *self.answers.pop(0)]


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    """Make this process a worker of torchrun's agent with a log folder, after so many restarts."""

    def be(agent: str, restarts: int = 0) -> None:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", f"/tmp/{agent}/attempt_{restarts}/0/error.json")

    return be


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    return RunConfig(output_dir=str(tmp_path), job_name="birds")


def begin(run: RunConfig, name: str = "20260102-120000") -> Path:
    """Start a run in a new folder, as this process's launch."""
    folder = Path(run.output_dir) / run.job_name / name
    folder.mkdir(parents=True)
    Launch.join(run, ALONE).begin(folder, None)
    return folder


def resumable(path: Path, age: float = 0) -> Path:
    """A checkpoint that a run could go on from, written `age` seconds ago."""
    write_checkpoint(path, dict.fromkeys(RESUME_KEYS, 0))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_without_torchrun_nothing_is_written(run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", "error.json")  # left by something else
    assert own_agent() is None
    folder = begin(run)
    Launch.join(run, ALONE).end(folder, ALONE)
    assert list(folder.iterdir()) == []
    assert Launch.join(run, ALONE).folder is None


@pytest.mark.parametrize("restarts", [1, 0])
def test_the_next_attempt_finds_the_folder(run: RunConfig, worker: Worker, restarts: int) -> None:
    worker("agent")
    begin(run, "20260102-110000")
    (Path(run.output_dir) / run.job_name / "20260102-110000" / MARK).write_text("{}")
    folder = begin(run)
    worker("agent", restarts)  # 0: another machine came or failed, which this one does not count
    assert Launch.join(run, ALONE).folder == folder


def test_one_machine_that_stayed_is_enough(run: RunConfig, worker: Worker) -> None:
    worker("second")
    stayed = own_agent()
    folder = begin(run)
    worker("third")
    launch = Launch.join(run, Seen([(stayed, 0)], [None]))
    assert launch.folder == folder
    launch.begin(folder, None)
    mark = Mark.read(folder)
    assert mark is not None and mark.agents == tuple(sorted([stayed or "", own_agent() or ""]))


@pytest.mark.parametrize("restarts", [0, 1])
def test_a_launch_that_failed_before_it_is_another_one(run: RunConfig, worker: Worker, restarts: int) -> None:
    worker("agent")
    folder = begin(run)
    worker("later", restarts)  # of the same id, and perhaps restarted before it had a folder of its own
    assert Launch.join(run, ALONE).folder is None
    assert Mark.read(folder) is not None


def test_a_run_that_is_done_is_found_only_after_a_failure(run: RunConfig, worker: Worker) -> None:
    worker("agent")
    folder = begin(run)
    Launch.join(run, ALONE).end(folder, ALONE)
    assert Launch.join(run, ALONE).folder is None
    worker("agent", 1)
    assert Launch.join(run, ALONE).folder == folder


def test_named_folders_are_looked_into(run: RunConfig, worker: Worker, tmp_path: Path) -> None:
    worker("agent")
    fixed = tmp_path / "fixed"
    fixed.mkdir()
    Launch.join(run, ALONE).begin(fixed, None)
    assert Launch.join(run, ALONE).folder is None
    assert Launch.join(RunConfig(run_dir=str(fixed)), ALONE).folder == fixed
    assert Launch.join(RunConfig(resume_ckpt_path=str(fixed / "checkpoint_0.pth")), ALONE).folder == fixed


def test_the_newest_checkpoint_of_this_launch_wins(
    worker: Worker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    worker("agent")
    named = resumable(tmp_path / "checkpoint_0.pth", age=90)
    resumable(tmp_path / "checkpoint_1.pth", age=60)
    run = RunConfig(resume_ckpt_path=str(named))
    first = Launch.join(run, ALONE)
    assert first.resume_point(run) == named
    first.begin(tmp_path, named)
    for _ in range(2):  # a later attempt remembers as well what was there before all of them
        again = Launch.join(run, ALONE)
        assert again.resume_point(run) == named
        again.begin(tmp_path, named)
    newest = resumable(tmp_path / "checkpoint_last.pth", age=30)
    with caplog.at_level("INFO", "minigpt4"):
        assert Launch.join(run, ALONE).resume_point(run) == newest
    assert f"restarted by torchrun: the run goes on in {tmp_path}, from {newest}" in caplog.text


def test_what_a_killed_attempt_left_is_cleared_away(run: RunConfig, worker: Worker) -> None:
    worker("agent")
    folder = begin(run)
    half = folder / ".checkpoint_last.pth.x1y2z3"
    half.write_bytes(b"PK")
    log = folder / "log.txt"
    log.write_text(json.dumps({"epoch": 0, "step": 6}) + "\n")
    again = Launch.join(run, ALONE)
    assert again.resume_point(run) is None
    again.begin(folder, None)
    assert not half.exists() and log.read_text() == ""
    log.write_text(json.dumps({"epoch": 0, "step": 6}) + "\n")
    again.begin(folder, folder / "checkpoint_0.pth")  # then the checkpoint says which epochs are done
    assert log.read_text() != ""


def test_a_folder_on_another_machine_is_named(run: RunConfig, worker: Worker) -> None:
    worker("moved", 1)
    elsewhere = (Path("output/birds/20260102-120000"), Mark(agents=("second:/tmp/x",)))
    with pytest.raises(
        ConfigError, match=r"run folder output/birds/20260102-120000 of second cannot be seen.*output_dir"
    ):
        Launch.join(run, Seen([("second:/tmp/x", 0)], [elsewhere]))

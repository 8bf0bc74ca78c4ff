"""Several machines train as one, and torchrun restarts a run whose workers were killed."""

from __future__ import annotations

import os
import re
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from minigpt4.common.checkpoint import read_checkpoint
from minigpt4.common.distributed import OWN_STORE
from minigpt4.common.errors import ConfigError
from tests.launch import Running
from tests.runners.conftest import LONG, PAIR
from tests.runners.project import (
    LOG_LINE,
    Project,
    assert_same_run,
    logs_step,
    printed_losses,
    read_epochs,
    tensorboard_scalars,
    untimed_epochs,
)

pytestmark = pytest.mark.distributed


def kill_worker(agent: Running, rank: int, step: int) -> str:
    """Kill the worker of a rank when that step of an epoch has been logged; returns the output until then."""
    printed = agent.read_until(logs_step(step))
    worker = re.search(rf"<worker of rank {rank}: process (\d+)>", printed)
    assert worker, printed
    os.kill(int(worker[1]), signal.SIGKILL)
    return printed


@pytest.mark.slow
def test_killed_workers_are_restarted_and_resume(project: Project, pair: Path) -> None:
    options = (*PAIR, "run.run_dir=killed", "run.resume_ckpt_path=auto")
    torchrun = ("--standalone", "--nproc-per-node=2", "--max-restarts=2")
    with project.start(*options, torchrun=torchrun, environment={OWN_STORE: "1"}) as agent:
        first = kill_worker(agent, rank=1, step=4)  # the first checkpoint comes after step 6
        second = kill_worker(agent, rank=0, step=18)
        status, third = agent.finish()
    assert status == 0, first + second + third

    assert "killed holds no checkpoint yet: starting from the beginning" in second
    assert "resumed from killed/checkpoint_last.pth" in third
    folder = project.folder / "killed"
    log = (folder / "train.log").read_text()
    assert "stopped by signal" not in log
    assert_same_run(folder / "checkpoint_1.pth", pair / "checkpoint_1.pth")
    assert printed_losses(log) == printed_losses((pair / "train.log").read_text())
    assert untimed_epochs(folder) == untimed_epochs(pair)
    curve = tensorboard_scalars(folder)
    assert dict(curve) == dict(tensorboard_scalars(pair))
    assert len(curve) <= 80 + 2, "steps that were done again are shown twice"
    assert {file.name for file in folder.iterdir()} == {file.name for file in pair.iterdir()}


def test_restarts_without_a_run_folder_are_refused(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    with pytest.raises(ConfigError, match=r"set --options run\.run_dir=FOLDER run\.resume_ckpt_path=auto"):
        project.train_here()
    assert not (project.folder / "output").exists()


def test_a_restart_on_the_store_of_the_failed_attempt_is_refused(project: Project) -> None:
    options = (*PAIR, "run.run_dir=shared_store", "run.resume_ckpt_path=auto")
    torchrun = ("--standalone", "--nproc-per-node=2", "--max-restarts=1")
    with project.start(*options, torchrun=torchrun, environment={OWN_STORE: "0"}) as agent:
        first = kill_worker(agent, rank=1, step=4)
        status, second = agent.finish()
    assert f"will be refused here: set the environment variable {OWN_STORE}=1" in first
    assert status != 0
    assert "error: torchrun restarted the workers with the rendezvous store of the failed attempt" in second
    assert not (project.folder / "shared_store" / "checkpoint_1.pth").exists()


@pytest.mark.slow
def test_two_machines_of_two_ranks_train_as_one_rank(project: Project, uninterrupted: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        endpoint = f"localhost:{free.getsockname()[1]}"
    where = ("--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", "--rdzv-id=together")
    torchrun = ("--nnodes=2", "--nproc-per-node=2", *where)
    options = (*LONG, "run.batch_size=1", "run.run_dir=machines")
    agents = [project.start(*options, torchrun=torchrun) for _ in range(2)]
    with agents[0], agents[1], ThreadPoolExecutor(2) as threads:
        ended = list(threads.map(Running.finish, agents))
    printed = "".join(output for _, output in ended)
    assert [status for status, _ in ended] == [0, 0], printed

    folder = project.folder / "machines"
    one, four = (dict(tensorboard_scalars(run)) for run in (uninterrupted, folder))
    assert list(one) == list(four) == list(range(80))
    assert max(abs(one[step] - four[step]) for step in one) < 1e-5
    for expected, found in zip(read_epochs(uninterrupted), read_epochs(folder), strict=True):
        for key in ("train_loss", "val_loss", "samples_seen"):
            assert found[key] == pytest.approx(expected[key], abs=1e-5)
    expected_content, content = (read_checkpoint(run / "checkpoint_1.pth") for run in (uninterrupted, folder))
    torch.testing.assert_close(content["model"], expected_content["model"], rtol=0, atol=1e-5)
    assert "global batch: 4 (1 per micro-batch x 1 accumulated x 4 processes)" in printed
    for log in (printed, (folder / "train.log").read_text()):  # rank 0 alone logs and writes
        assert len(LOG_LINE.findall(log)) == 80
        assert log.count("run folder: machines") == 1

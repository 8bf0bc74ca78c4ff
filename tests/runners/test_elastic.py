"""Several machines train as one, and a run whose workers are killed goes on by itself."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch

from minigpt4.common.checkpoint import read_checkpoint
from tests.runners.conftest import LONG, PAIR
from tests.runners.project import LOG_LINE, Project, losses, read_epochs
from tests.runners.test_distributed import curve, logged_losses
from tests.runners.test_resume import assert_same_run, epochs

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
PATIENCE = 120
"""Seconds for the processes to start, on a machine that is doing something else too."""
Agents = Sequence["subprocess.Popen[str]"]


def machines(name: str) -> tuple[str, ...]:
    """torchrun's arguments on each of two machines, both of which are this one."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        endpoint = f"localhost:{free.getsockname()[1]}"
    return ("--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", f"--rdzv-id={name}")


@contextmanager
def started(agents: Agents) -> Iterator[Agents]:
    """torchrun's agents; none of them outlives a test that fails."""
    try:
        yield agents
    finally:
        for agent in agents:
            agent.terminate()  # does nothing to one that has ended


def finish(agents: Agents) -> list[str]:
    """Wait for the end of all; what each printed."""
    with ThreadPoolExecutor(len(agents)) as threads:
        printed = list(threads.map(lambda agent: agent.communicate(timeout=2 * PATIENCE)[0], agents))
    assert [agent.returncode for agent in agents] == [0] * len(agents), "\n".join(printed)
    return printed


def wait_for_step(log: Callable[[], str], iteration: int) -> None:
    """Until that step of the first epoch has been logged."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if any(int(match["iteration"]) == iteration for match in LOG_LINE.finditer(log())):
            return
        time.sleep(0.01)
    raise AssertionError(f"step {iteration} was not reached in {PATIENCE} s; the log says: {log()}")


def kill(agents: Agents, rank: int) -> None:
    """The worker of that rank ends without a word."""
    workers = [worker for agent in agents for worker in psutil.Process(agent.pid).children()]
    (found,) = (worker for worker in workers if worker.environ().get("RANK") == str(rank))
    found.send_signal(signal.SIGKILL)


def test_killed_workers_are_replaced_and_the_run_goes_on(project: Project, pair: Path) -> None:
    parent = project.folder / "output" / "killed"

    def log() -> str:
        return "".join(file.read_text() for file in parent.glob("*/train.log"))

    torchrun = ("--standalone", "--max-restarts=2")
    with started([project.start(*PAIR, "run.job_name=killed", processes=2, torchrun=torchrun)]) as agents:
        wait_for_step(log, 3)  # the first checkpoint comes after step 6
        kill(agents, rank=1)
        wait_for_step(log, 17)
        kill(agents, rank=0)
        finish(agents)

    (folder,) = parent.iterdir()
    where = folder.relative_to(project.folder)
    assert f"restarted by torchrun: the run goes on in {where}, from the beginning" in log()
    assert f"restarted by torchrun: the run goes on in {where}, from {where}/checkpoint_last.pth" in log()
    assert "told to stop" not in log()
    assert_same_run(*(read_checkpoint(run / "checkpoint_1.pth") for run in (folder, pair)))
    assert losses(log()) == losses((pair / "train.log").read_text())
    assert epochs(folder) == epochs(pair)
    assert curve(folder) == curve(pair)
    assert len(logged_losses(folder)) <= 80 + 2, "steps that were done again are shown twice"
    assert {file.name for file in folder.iterdir()} == {file.name for file in pair.iterdir()}


def test_two_machines_of_two_processes_train_as_one_process(project: Project, uninterrupted: str) -> None:
    options = (*LONG, "datasets.pictures.batch_size=1", "run.run_dir=machines")
    torchrun = machines("together")
    with started([project.start(*options, processes=2, torchrun=torchrun) for _ in range(2)]) as agents:
        printed = "".join(finish(agents))

    alone, together = project.folder / "long", project.folder / "machines"
    one, four = curve(alone), curve(together)
    assert list(one) == list(four) == list(range(80))
    assert max(abs(one[step] - four[step]) for step in one) < 1e-5
    for expected, found in zip(*(read_epochs(folder / "log.txt") for folder in (alone, together)), strict=True):
        for key in ("train_loss", "val_loss", "samples_seen"):
            assert found[key] == pytest.approx(expected[key], abs=1e-5)
    weights, expected_weights = (project.checkpoint(run, "checkpoint_1.pth")["model"] for run in ("machines", "long"))
    for name in expected_weights:
        torch.testing.assert_close(weights[name], expected_weights[name], rtol=0, atol=1e-5)
    content = project.checkpoint("machines", "checkpoint_1.pth")
    assert content["run"]["world_size"] == 4
    for log in (printed, (together / "train.log").read_text()):  # the main process alone speaks and writes
        assert len(LOG_LINE.findall(log)) == 80
        assert log.count("run folder: machines") == 1

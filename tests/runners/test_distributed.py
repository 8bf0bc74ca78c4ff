"""Several ranks train as one does, and none is left waiting."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from minigpt4.common.checkpoint import read_checkpoint
from tests.launch import launch
from tests.runners.conftest import LONG
from tests.runners.project import Project, logs_step, read_epochs, tensorboard_scalars

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

PROGRAM = """
import time
from datetime import timedelta
from minigpt4.common import distributed as dist
from minigpt4.common.cli import exit_on_error
from minigpt4.common.errors import ConfigError

def fail():
    raise ConfigError("only rank 0 can know")

dist.TIMEOUT, dist.ROLL_CALL = timedelta(seconds=6), timedelta(seconds=2)
processes = dist.start_processes("cpu")
try:
    processes.run_on_main(fail)
except (ConfigError, SystemExit) as error:
    print(f"<{processes.rank}: {type(error).__name__}>", flush=True)
print(f"<{processes.run_on_main(lambda: 5)} {processes.gather(processes.rank)} {processes.any(processes.rank == 1)}>")
with exit_on_error():
    if processes.rank == 1:
        time.sleep(20)
    import torch
    with processes.report_lost_ranks(lambda: "step 3"):
        processes.sum(torch.ones(1))
"""


@pytest.fixture(scope="module")
def stopped(project: Project) -> tuple[Path, str]:
    """Two ranks with two micro-batches of one sample each, stopped at step 20; finished by one rank.

    The run folder, and the output until the stop.
    """
    options = ("run.run_dir=stopped", *LONG)
    options = (*options, "run.num_workers=1")
    two = ("run.batch_size=1", "run.accum_grad_iters=2")
    with project.start(*options, *two, torchrun=("--standalone", "--nproc-per-node=2")) as agent:
        printed = agent.read_until(logs_step(18))
        os.kill(agent.pid, signal.SIGTERM)  # torchrun passes it on to both ranks and their loader workers
        status, rest = agent.finish()
    printed += rest
    assert status != 0
    assert "stopped by signal at step" in printed
    return project.train_here(*options, "run.resume_ckpt_path=auto"), printed


def test_two_ranks_have_the_loss_curve_of_one(uninterrupted: Path, stopped: tuple[Path, str]) -> None:
    one, two = (dict(tensorboard_scalars(folder)) for folder in (uninterrupted, stopped[0]))
    assert list(one) == list(two) == list(range(80))
    assert max(abs(one[step] - two[step]) for step in one) < 1e-5
    for expected, found in zip(read_epochs(uninterrupted), read_epochs(stopped[0]), strict=True):
        for key in ("train_loss", "val_loss"):
            assert found[key] == pytest.approx(expected[key], abs=1e-5)
        assert found["samples_seen"] == expected["samples_seen"]
    assert "resuming with a difference: run.batch_size: was 1, is 4" in (stopped[0] / "train.log").read_text()


def test_the_weights_agree(uninterrupted: Path, stopped: tuple[Path, str]) -> None:
    one, two = (read_checkpoint(folder / "checkpoint_1.pth")["model"] for folder in (uninterrupted, stopped[0]))
    torch.testing.assert_close(two, one, rtol=0, atol=1e-5)


def test_both_ranks_stop_at_the_same_step(stopped: tuple[Path, str]) -> None:
    assert stopped[1].count("stopped by signal at step 20, saved stopped/checkpoint_last.pth") == 1


def test_agreement_and_a_rank_that_hangs(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    done = launch(str(script), ranks=2)
    assert "<0: ConfigError>" in done.stdout and "<1: SystemExit>" in done.stdout
    assert done.stdout.count("<5 [0, 1] True>") == 2
    assert done.returncode != 0
    assert "error: rank 0 lost contact at step 3: rank 1 ended or gave no answer" in done.stderr

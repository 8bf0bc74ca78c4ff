"""Several processes do what one does, and none is left waiting."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.runners.conftest import LONG
from tests.runners.project import LOG_LINE, REPOSITORY, Project, read_epochs

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

PROGRAM = """
import time
from datetime import timedelta
from minigpt4.common import distributed as dist
from minigpt4.common.cli import exit_on_error
from minigpt4.common.errors import ConfigError

def fail():
    raise ConfigError("only the main process can know")

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
def stopped_pair(project: Project) -> str:
    """Two processes, micro-batches of one and two of them a step; stopped at step 20, finished by one process."""
    options = ("run.run_dir=pair", *LONG)
    process = project.start(
        *options, "datasets.pictures.batch_size=1", "run.accum_grad_iters=2", "run.num_workers=1", processes=2
    )
    printed = ""
    assert process.stdout is not None
    for line in process.stdout:
        printed += line
        match = LOG_LINE.search(line)
        if match and int(match["iteration"]) == 17:
            process.send_signal(signal.SIGTERM)  # torchrun passes it on to both, and to their loader workers
            break
    printed += process.stdout.read()
    process.wait(timeout=60)
    assert process.returncode != 0
    assert "told to stop: step" in printed
    project.train_here(*options, "run.resume_ckpt_path=auto")
    return printed


def logged_losses(folder: Path) -> list[tuple[int, float]]:
    """Step and unrounded loss of every point that TensorBoard shows."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("train/loss")]


def curve(folder: Path) -> dict[int, float]:
    """Loss by step, unrounded."""
    return dict(logged_losses(folder))


def test_two_processes_have_the_loss_curve_of_one(project: Project, uninterrupted: str, stopped_pair: str) -> None:
    one, two = curve(project.folder / "long"), curve(project.folder / "pair")
    assert list(one) == list(two) == list(range(80))
    assert max(abs(one[step] - two[step]) for step in one) < 1e-5
    alone, pair = (read_epochs(project.folder / run / "log.txt") for run in ("long", "pair"))
    for epoch in (0, 1):
        for key in ("train_loss", "val_loss"):
            assert pair[epoch][key] == pytest.approx(alone[epoch][key], abs=1e-5)
        assert pair[epoch]["samples_seen"] == alone[epoch]["samples_seen"]
    log = (project.folder / "pair" / "train.log").read_text()
    assert "processes: 2 then, 1 now" in log


def test_the_weights_agree(project: Project, uninterrupted: str, stopped_pair: str) -> None:
    alone, pair = (project.checkpoint(run, "checkpoint_1.pth")["model"] for run in ("long", "pair"))
    for name in alone:
        torch.testing.assert_close(pair[name], alone[name], rtol=0, atol=1e-5)


def test_both_leave_at_the_same_step(stopped_pair: str) -> None:
    assert stopped_pair.count("told to stop: step 20 is saved in pair/checkpoint_last.pth") == 1


def test_agreeing_and_a_process_that_hangs(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "<0: ConfigError>" in done.stdout and "<1: SystemExit>" in done.stdout
    assert done.stdout.count("<5 [0, 1] True>") == 2
    assert done.returncode != 0
    assert "error: rank 0 lost contact at step 3: rank 1 ended or gave no answer" in done.stderr

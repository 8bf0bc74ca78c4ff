"""How long a waiting thread should spin before it sleeps: `python -m benchmarks.spinning`.

Training steps and answers of the tiny model, one at a time, on idle cores and beside as many other programs as there
are cores. Each figure is of a fresh process, because OpenMP reads GOMP_SPINCOUNT once; 100,000 are about a millisecond,
and 300,000 what it takes where nothing is said.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import torch

from benchmarks.gradients import make_batch
from benchmarks.machine import describe_machine
from minigpt4.api import load
from minigpt4.scenes.drawing import draw_scene
from minigpt4.scenes.sampling import sample_split

SPINS = (0, 1000, 5000, 20_000, 300_000)
STEPS, ANSWERS = 12, 8
BATCH = 8


def rate(work: Callable[[], object], times: int) -> float:
    """How often a second `work` can be done; the first time is not counted."""
    work()
    start = time.perf_counter()
    for _ in range(times):
        work()
    return times / (time.perf_counter() - start)


def measure() -> tuple[float, float]:
    """Training steps and answers a second in this process."""
    loaded = load(device="cpu")
    images = [draw_scene(placed, 64) for placed in sample_split("test", ANSWERS + 1, "spinning")]
    answers = rate(lambda: loaded.describe(images.pop()), ANSWERS)
    model = loaded.model.train()
    batch = make_batch(model, BATCH, 0)
    return rate(lambda: (model(batch) / batch.num_targets).backward(), STEPS), answers


@contextmanager
def busy(programs: int) -> Iterator[None]:
    """Other programs that compute all the time."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(programs)]
    try:
        yield
    finally:
        for program in running:
            program.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # what the fresh processes do
    args = parser.parse_args()
    if args.one:
        print(*measure())
        return
    print(describe_machine(torch.device("cpu")))
    for others in (0, os.cpu_count() or 1):
        with busy(others):
            found: dict[int, list[list[float]]] = {spins: [] for spins in SPINS}
            for _ in range(args.rounds):
                for spins in SPINS:
                    command = [sys.executable, "-m", "benchmarks.spinning", "--one"]
                    ran = subprocess.run(
                        command, env=os.environ | {"GOMP_SPINCOUNT": str(spins)}, stdout=subprocess.PIPE, check=True
                    )
                    found[spins].append([float(part) for part in ran.stdout.split()])
        print(f"beside {others} other programs:  GOMP_SPINCOUNT, training steps a second, answers a second")
        for spins, rates in found.items():
            steps, answers = (median(column) for column in zip(*rates, strict=True))
            print(f"{spins:9,} {steps:7.2f} {answers:7.2f}", flush=True)


if __name__ == "__main__":
    main()

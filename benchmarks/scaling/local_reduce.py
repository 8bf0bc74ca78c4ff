"""Collectives of gloo between a few processes of this machine, measured beside the formula.

Not a network: messages are copied in memory, by cores that all processes share. What it can show is whether the time
grows with size and processes as the formula says.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.scaling.allreduce import FLOAT32, Link, ring_seconds

ROUNDS = 15
PROJECT = Path(__file__).parents[2]
Seconds = dict[int, dict[int, float]]
"""Processes -> numbers shared -> seconds of an all-reduce, the median as the first process sees it."""


def measure_all_reduce(groups: Sequence[int], sizes: Sequence[int]) -> Seconds:
    """Time gloo's all-reduce of float32 numbers, with one thread a process.

    Args:
        groups: How many processes take part, in ascending order.
        sizes: How many numbers each of them has.
    """
    with tempfile.TemporaryDirectory() as folder:
        task = json.dumps({"groups": list(groups), "sizes": list(sizes), "store": f"file://{Path(folder) / 'store'}"})
        command = [sys.executable, "-m", "benchmarks.scaling.local_reduce", task]
        others = [subprocess.Popen([*command, str(rank)], cwd=PROJECT) for rank in range(1, max(groups))]
        first = subprocess.run([*command, "0"], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
        failed = [code for code in (first.returncode, *(other.wait() for other in others)) if code]
    if failed:
        raise SystemExit("a process of the all-reduce ended before it was measured; see its message above")
    found = json.loads(first.stdout)
    return {int(group): {int(size): seconds for size, seconds in one.items()} for group, one in found.items()}


def link_of(measured: Seconds, processes: int, numbers: int) -> Link:
    """The latency and bandwidth with which the ring's formula gives what so many processes took for 1 and `numbers`."""
    messages = 2 * (processes - 1)
    small, large = measured[processes][1], measured[processes][numbers]
    return Link(small / messages, messages / processes * FLOAT32 * numbers / (large - small))


def expected(processes: int, numbers: int, link: Link, sharing: int) -> tuple[float, float]:
    """Seconds of an all-reduce by the ring's formula.

    Args:
        processes: That take part.
        numbers: float32, of each.
        link: Of `link_of`.
        sharing: Processes that it was found with.

    Returns:
        With a link of its own for each process, as on a cluster; and with all of them sharing the copying that
        `sharing` had to themselves, as where there are too few cores.
    """
    size = FLOAT32 * numbers
    shared = Link(link.latency, link.bandwidth * sharing / processes)
    return ring_seconds(processes, size, link), ring_seconds(processes, size, shared)


def _take_part(rank: int, groups: Sequence[int], sizes: Sequence[int], store: str) -> Seconds:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=max(groups))
    found: Seconds = {}
    for processes in groups:
        group = dist.new_group(list(range(processes)))
        if rank < processes:
            found[processes] = {size: _median_seconds(_all_reduce(size, group), group) for size in sizes}
        dist.barrier()
    dist.destroy_process_group()
    return found


def _all_reduce(size: int, group: Any) -> Callable[[], Any]:
    numbers = torch.zeros(size)
    return lambda: dist.all_reduce(numbers, group=group)


def _median_seconds(work: Callable[[], Any], group: Any) -> float:
    times = []
    for _ in range(ROUNDS + 1):
        dist.barrier(group)
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times[1:])


def main() -> None:
    task, rank = json.loads(sys.argv[1]), int(sys.argv[2])
    found = _take_part(rank, **task)
    if rank == 0:
        print(json.dumps(found))


if __name__ == "__main__":
    main()

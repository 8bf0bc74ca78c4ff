"""Stage 1 on one to a thousand processes: python -m benchmarks.scale

Measured with the project's own code, at the true sizes: what one of N processes does by itself. Calculated from
assumptions, which are the options: what the N do together. There is no cluster in this.
"""

from __future__ import annotations

import argparse
import pickle
import tempfile
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from math import ceil, log2
from pathlib import Path
from statistics import NormalDist

import torch

from benchmarks.machine import describe_machine, interleaved
from benchmarks.report import Row, report
from benchmarks.shards import write_shards
from minigpt4.datasets.sampler import SampleOrder, ShardShuffle, StepSampler
from minigpt4.datasets.shards.index import ROW, open_index
from minigpt4.runners.trainer import STOP_CHECK_STEPS

CPU = torch.device("cpu")
GRADIENT = 4 * (768 + 1) * 4096
"""Bytes of the projection's gradient, from a Q-Former to a language model of 7B in float32."""
ROUNDS, STEPS = 5, 100
"""Runs of each timing, and the steps that listing is timed over."""
COLUMNS = {
    "measured": "list (the samples of a step), resume (once, at optimizer step --steps)",
    "calculated": "reduce (the gradient of all), wait (for the slowest), stop? (ask whether a process was told to), "
    "efficiency (a process alone: 100 %), cores (of each process, for decoding), shards/s (opened by all)",
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--processes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 64, 256, 1000])
    add("--pairs", type=int, nargs="+", default=[115_000_000, 5_000_000], help="images with captions of each dataset")
    add("--ratio", type=float, nargs="+", default=[115, 14], help="datasets.NAME.sample_ratio of each")
    add("--per-shard", type=int, default=10_000, help="pairs of a shard")
    add("--window", type=int, default=16, help="datasets.NAME.shuffle_shards")
    add("--batch-size", type=int, default=64)
    add("--steps", type=int, default=20_000, help="optimizer step that a resume is timed at")
    add("--step-seconds", type=float, default=1.8, help="of one process alone (MiniGPT-4's paper: 10 h on 4 A100)")
    add("--spread", type=float, default=0.03, help="standard deviation of step times, as a share of them")
    add("--link", type=float, nargs=2, default=[10e-6, 25e9], help="of NCCL between nodes: seconds, bytes/s")
    add("--control", type=float, nargs=2, default=[50e-6, 1e9], help="of gloo: seconds, bytes/s")
    add("--workers", type=int, default=4, help="run.num_workers")
    add("--decoded", type=float, default=1900, help="samples/s that a core decodes (benchmarks.shards measures it)")
    add("--pair-bytes", type=float, default=25_000)
    add("--out", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    if len(args.pairs) != len(args.ratio) or min(args.pairs) < args.per_shard:
        parser.error("--pairs and --ratio take one number a dataset, and a dataset has --per-shard pairs at least")
    return args


def ring_seconds(processes: int, size: float, latency: float, bandwidth: float) -> float:
    """All-reduce of `size` bytes around a ring: 2 (p - 1) messages of size / p, one after the other.

    Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication Operations in MPICH", 2005, section 4.5.
    """
    return 2 * (processes - 1) * (latency + size / processes / bandwidth)


def tree_seconds(processes: int, size: float, latency: float, bandwidth: float) -> float:
    """All-reduce of `size` bytes up and down two binary trees with half the data each, as NCCL does it.

    Sanders, Speck and Traeff, "Two-tree algorithms for full bandwidth broadcast, reduction and scan", 2009.
    """
    return (2 * ceil(log2(processes)) * latency + 2 * size / bandwidth) if processes > 1 else 0.0


def expected_largest(processes: int) -> float:
    """Mean of the largest of p standard normal numbers (David and Nagaraja, Order Statistics, 2003, section 3.1)."""
    below, width = NormalDist().cdf, 0.005
    middles = [(number + 0.5) * width for number in range(2000)]
    return round(width * sum(1 - below(x) ** processes - below(-x) ** processes for x in middles), 9)


def shards_opened(per_step: float, per_batch: float, per_shard: int, window: int, workers: int) -> float:
    """Shards of a dataset that the loader of one process opens in a step; a worker keeps `window` of them open.

    All processes read the same `window` shards at a time; each worker prepares every `workers`-th batch of its process
    and opens the shards that it meets for the first time. `per_step` samples of the dataset are in a step of all
    processes, `per_batch` in a batch of one, `per_shard` in a shard.
    """
    batches = max(1.0, window * per_shard / per_step / workers)  # of a worker while these shards last
    return window * (1 - (1 - 1 / window) ** (batches * per_batch)) / batches


def make_order(pairs: Sequence[int], ratios: Sequence[float], per_shard: int, window: int) -> SampleOrder:
    """The order of a mixture of datasets of these sizes."""
    names = [f"dataset{number}" for number in range(len(pairs))]
    counts = [[per_shard] * (number // per_shard) for number in pairs]
    orders = [ShardShuffle(f"42-{name}", one, window) for name, one in zip(names, counts, strict=True)]
    return SampleOrder(names, [sum(one) for one in counts], ratios, 42, orders)


def list_samples(order: SampleOrder, batch_size: int, processes: int, start: int, stop: int) -> list[list]:
    """The samples of the steps [start, stop) of the process in the middle."""
    step = {"start_step": start, "stop_step": stop}
    return list(StepSampler(order, batch_size=batch_size, world_size=processes, rank=processes // 2, **step))


def index_bytes(shards: int) -> tuple[int, int]:
    """Bytes of an index of this many shards: as sent to a process, and in its memory."""
    with tempfile.TemporaryDirectory() as folder:
        index = open_index(write_shards(Path(folder), 1, 1), None)
    (entry,) = index.entries.values()
    entries = {index.folder / f"{number:05d}.tar": replace(entry) for number in range(shards)}
    sent = pickle.dumps(replace(index, entries=entries))
    tracemalloc.start()
    kept = pickle.loads(sent), tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return len(sent), kept[1]


def make_row(processes: int, args: argparse.Namespace) -> Row:
    """The table's row for a number of processes, in ms where nothing else is said."""
    sizes, batch = (args.pairs, args.ratio, args.per_shard, args.window), args.batch_size
    order = make_order(*sizes)
    listing, resume = interleaved(
        {
            "list": lambda: list_samples(order, batch, processes, 0, STEPS),
            "resume": lambda: list_samples(make_order(*sizes), batch, processes, args.steps, args.steps + 1),
        },
        ROUNDS,
        CPU,
    ).values()
    reduced = sum(
        min(ring_seconds(processes, size, *args.link), tree_seconds(processes, size, *args.link))
        for size in (4, GRADIENT)  # the number of target tokens is summed first
    )
    waiting = args.step_seconds * args.spread * expected_largest(processes)
    stopping = ring_seconds(processes, 8, *args.control) / STOP_CHECK_STEPS
    step = args.step_seconds + waiting + reduced + stopping
    per_step, shares = processes * batch, [ratio / sum(args.ratio) for ratio in args.ratio]
    shards = (shards_opened(share * per_step, share * batch, *sizes[2:], args.workers) for share in shares)
    return {
        "list": 1000 * listing.seconds / STEPS,
        "resume": 1000 * resume.seconds,
        "reduce": 1000 * reduced,
        "wait": 1000 * waiting,
        "stop?": 1000 * stopping,
        "step, s": step,
        "efficiency": f"{args.step_seconds / step:.1%}",
        "pairs/s": per_step / step,
        "GB/s": per_step / step * args.pair_bytes / 1e9,
        "cores": batch / step / args.decoded,
        "shards/s": processes * sum(shards) / step,
    }


def main() -> None:
    args = parse_arguments()
    shards = sum(pairs // args.per_shard for pairs in args.pairs)
    sent, kept = index_bytes(shards)
    facts = {
        "machine": describe_machine(CPU),
        **COLUMNS,
        "index of all shards": f"{shards:,}: {sent:,} bytes sent to each process, {kept:,} in its memory, "
        f"{ROW.itemsize * sum(args.pairs):,} on disk",
        "assumed": ", ".join(f"{name} {value}" for name, value in vars(args).items() if name != "out"),
    }
    rows = {f"{processes:,}": make_row(processes, args) for processes in args.processes}
    report("Stage 1 on many processes, ms of a step", rows, facts, args.out)


if __name__ == "__main__":
    main()

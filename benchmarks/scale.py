"""Stage 1 on one to a thousand processes: python -m benchmarks.scale

What a process does by itself is measured at the true sizes, by running it here. What many do together is calculated
from assumptions, which are arguments: there is no cluster in this. The tables say which is which.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.machine import describe_machine
from benchmarks.report import Row, Rows, report_tables
from benchmarks.scaling.allreduce import Link, projection_parameters
from benchmarks.scaling.forecast import Assumptions, forecast
from benchmarks.scaling.loading import Source
from benchmarks.scaling.local_reduce import expected, link_of, measure_all_reduce
from benchmarks.scaling.measured import (
    DECODED,
    bytes_kept,
    index_figures,
    make_order,
    picture_figures,
    resume_seconds,
    sampler_seconds,
)
from benchmarks.scaling.rows import MILLI, WIDTHS, first_limits, gradients, opening, outcome, supply
from benchmarks.scaling.waiting import EXCESSES
from minigpt4.datasets.sampler import SampleOrder

LOCAL = (2, 4)
"""Processes of this machine that share a gradient."""
SAMPLED = 200
"""Steps over which the sampler is timed."""
WINDOWS = (1, 4, 16, 64)
WORKERS = (4, 1)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--processes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 64, 256, 1000])
    add("--pairs", type=int, nargs="+", default=[115_000_000, 5_000_000], help="of each dataset")
    add("--ratio", type=float, nargs="+", default=[115, 14], help="datasets.NAME.sample_ratio of each")
    add("--per-shard", type=int, default=10_000)
    add("--window", type=int, default=16, help="datasets.NAME.shuffle_shards")
    add("--batch-size", type=int, default=64)
    add("--steps", type=int, default=20_000)
    add("--step-seconds", type=float, default=1.8, help="of one process alone (MiniGPT-4's paper: 10 h on 4 A100)")
    add("--spread", type=float, default=0.03, help="standard deviation of step times, as a share")
    add("--distribution", choices=sorted(EXCESSES), default="normal", help="of step times")
    add("--llm", choices=sorted(WIDTHS), default="7B")
    add("--per-node", type=int, default=8, help="processes a node")
    add("--inside", type=float, nargs=2, default=[5e-6, 200e9], help="link in a node: seconds, bytes/s")
    add("--between", type=float, nargs=2, default=[10e-6, 25e9], help="link of nodes: seconds, bytes/s")
    add("--control", type=float, nargs=2, default=[50e-6, 1e9], help="link of gloo: seconds, bytes/s")
    add("--workers", type=int, default=4, help="of a process's loader, a core each")
    add("--decoded", type=float, help="samples/s a core (default: as measured here)")
    add("--pair-bytes", type=float, default=25_000)
    add("--file-bandwidth", type=float, default=50e9, help="bytes/s of the shared file system")
    add("--file-opens", type=float, default=50_000, help="files that the shared file system opens a second")
    add("--out", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    if len(args.pairs) != len(args.ratio):
        parser.error("--pairs and --ratio name different numbers of datasets")
    if any(pairs < args.per_shard for pairs in args.pairs):
        parser.error("--per-shard is more than a dataset has pairs")
    return args


def assumptions(args: argparse.Namespace, decoded_per_second: float) -> Assumptions:
    """The arguments, as the forecast takes them."""
    shares = [ratio / sum(args.ratio) for ratio in args.ratio]
    return Assumptions(
        step_seconds=args.step_seconds,
        batch_size=args.batch_size,
        width=WIDTHS[args.llm],
        spread=args.spread,
        distribution=args.distribution,
        inside=Link(*args.inside),
        between=Link(*args.between),
        control=Link(*args.control),
        per_node=args.per_node,
        workers=args.workers,
        decoded_per_second=args.decoded or decoded_per_second,
        pair_bytes=args.pair_bytes,
        file_bytes_per_second=args.file_bandwidth,
        opens_per_second=args.file_opens,
        window=args.window,
        sources=[Source(pairs, args.per_shard, share) for pairs, share in zip(args.pairs, shares, strict=True)],
    )


def listing(assumed: Assumptions, processes: int, steps: int) -> Row:
    """What listing its samples takes one process of so many."""
    order = make_order(assumed.sources, assumed.window)
    a_step = sampler_seconds(order, assumed.batch_size, processes, SAMPLED)
    first = resume_seconds(assumed.sources, assumed.window, assumed.batch_size, processes, steps)
    return {
        "samples of a step": float(processes * assumed.batch_size),
        "its own listed, ms a step": a_step / MILLI,
        "share of a step": f"{a_step / assumed.step_seconds:.3%}",
        f"going on at step {steps:,}, ms": first / MILLI,
    }


def order_figures(assumed: Assumptions, processes: int) -> dict[str, float]:
    """The memory of the order while a process of so many goes through it."""

    def use() -> SampleOrder:
        order = make_order(assumed.sources, assumed.window)
        sampler_seconds(order, assumed.batch_size, processes, SAMPLED)
        return order

    return {"order in memory, bytes": bytes_kept(use)}


def local_collectives(width: int) -> Rows:
    """Gloo between processes of this machine, beside the ring's formula with what two processes took for it."""
    numbers = projection_parameters(width)
    sizes = {1: "one number", numbers // 4: "a quarter", numbers: "the projection", 4 * numbers: "four times that"}
    measured = measure_all_reduce(LOCAL, list(sizes))
    link = link_of(measured, LOCAL[0], numbers)
    rows: Rows = {}
    for processes in LOCAL:
        for size, name in sizes.items():
            own, shared = expected(processes, size, link, LOCAL[0])
            rows[f"{processes} processes, {name}"] = {
                "measured, ms": measured[processes][size] / MILLI,
                "formula, a link each, ms": own / MILLI,
                "formula, sharing the cores, ms": shared / MILLI,
            }
    return rows


def make_tables(args: argparse.Namespace) -> tuple[dict[str, Rows], Assumptions]:
    """All tables by title, and what the calculated ones assume."""
    with tempfile.TemporaryDirectory() as folder:
        pictures = picture_figures(Path(folder) / "pictures")
        assumed = assumptions(args, pictures[DECODED])
        table = index_figures(Path(folder) / "index", assumed.sources)
    most = max(args.processes)
    late = {name: replace(assumed, distribution=name) for name in EXCESSES}
    many = [(f"{number:,}", number) for number in args.processes]
    tables: dict[str, Rows] = {
        "MEASURED here: one process by itself, files in memory already": {
            name: {"figure": figure} for name, figure in (order_figures(assumed, most) | table | pictures).items()
        },
        "MEASURED here: listing samples, in one process of so many": {
            row: listing(assumed, number, args.steps) for row, number in many
        },
        "MEASURED here: gloo's all-reduce between processes of this machine (not a network)": local_collectives(
            assumed.width
        ),
        "CALCULATED: all-reduce of the gradient": {row: gradients(assumed, number) for row, number in many},
        "CALCULATED: what the loaders have to deliver": {row: supply(assumed, number) for row, number in many},
        f"CALCULATED: shards opened by {most:,} processes, by shuffle_shards and workers": {
            f"{window} shards, num_workers {workers}": opening(replace(assumed, window=window, workers=workers), most)
            for window in WINDOWS
            for workers in WORKERS
        },
        "CALCULATED: waiting for the slowest, ms a step": {
            row: {name: forecast(number, one).waiting / MILLI for name, one in late.items()} for row, number in many
        },
        "CALCULATED: stage 1 (waiting, gradients, agreeing: ms a step)": {
            row: outcome(assumed, number, args.steps) for row, number in many
        },
    }
    return tables, assumed


def main() -> None:
    args = parse_arguments()
    tables, assumed = make_tables(args)
    given = {name: value for name, value in vars(args).items() if name not in ("out", "processes")}
    facts = {
        "machine": describe_machine(torch.device("cpu")),
        "held up by": first_limits(assumed),
        "assumed": ", ".join(f"{name} {value}" for name, value in given.items() if value is not None),
    }
    report_tables("Stage 1 on many processes", tables, facts, args.out)


if __name__ == "__main__":
    main()

"""The calculated figures as rows of tables."""

from __future__ import annotations

from benchmarks.report import Row
from benchmarks.scaling.allreduce import FLOAT32, projection_parameters, ring_seconds, tree_seconds
from benchmarks.scaling.forecast import MOST, Assumptions, efficiency, forecast, processes_until
from benchmarks.scaling.loading import busiest_file, cores_needed, files_opened

WIDTHS = {"7B": 4096, "13B": 5120}
FULL_GRADIENT = 2 * 6_738_415_616
"""Bytes of the gradient of LLaMA-7B in bfloat16, which training all of it would share."""
MILLI, MEGA, GIGA, HOUR = 1e-3, 1e6, 1e9, 3600


def gradients(assumed: Assumptions, processes: int) -> Row:
    """All-reduce of what is trained here, and of everything for contrast."""
    link = assumed.link(processes)
    row: Row = {}
    for name, width in WIDTHS.items():
        size = FLOAT32 * projection_parameters(width)
        row[f"{name}: ring, ms"] = ring_seconds(processes, size, link) / MILLI
        row[f"{name}: tree, ms"] = tree_seconds(processes, size, link) / MILLI
    row["all of 7B: ring, ms"] = ring_seconds(processes, FULL_GRADIENT, link) / MILLI
    row["all of 7B: tree, ms"] = tree_seconds(processes, FULL_GRADIENT, link) / MILLI
    return row


def supply(assumed: Assumptions, processes: int) -> Row:
    """What the loaders have to deliver for the processes to keep their own pace."""
    seconds = forecast(processes, assumed).training
    pairs = processes * assumed.batch_size / seconds
    return {
        "pairs/s": pairs,
        "cores a process": cores_needed(assumed.batch_size, seconds, assumed.decoded_per_second),
        "GB/s": pairs * assumed.pair_bytes / GIGA,
        **opening(assumed, processes),
    }


def opening(assumed: Assumptions, processes: int) -> Row:
    """What all processes ask of the shards that they read at the same time."""
    seconds = forecast(processes, assumed).training
    rate = processes * assumed.batch_size * assumed.pair_bytes / seconds
    opened = files_opened(assumed.sources, assumed.window, assumed.batch_size, processes, assumed.workers)
    return {
        "files opened a step": opened,
        "files opened/s": opened / seconds,
        "MB/s of the busiest shard": busiest_file(assumed.sources, assumed.window, rate) / MEGA,
    }


def outcome(assumed: Assumptions, processes: int, steps: int) -> Row:
    """A step, what is lost in it, and how long the run takes."""
    found = forecast(processes, assumed)
    pairs = processes * assumed.batch_size / found.step
    total = sum(source.pairs for source in assumed.sources)
    return {
        "waiting": found.waiting / MILLI,
        "gradients": found.gradients / MILLI,
        "agreeing": found.agreeing / MILLI,
        "step, s": found.step,
        "efficiency": f"{efficiency(processes, assumed):.1%}",
        "pairs/s": pairs,
        f"{steps:,} steps, h": steps * found.step / HOUR,
        f"{total / MEGA:.0f} M pairs, h": total / pairs / HOUR,
        "most lost by": found.loss if processes > 1 else "",
    }


def first_limits(assumed: Assumptions) -> str:
    """From how many processes on each supply would hold up the training."""
    limits = {supply: processes_until(assumed, supply) for supply in forecast(1, assumed).supplies}
    return ", ".join(
        f"{name}: {f'from {number:,} processes on' if number else f'not up to {MOST:,}'}"
        for name, number in limits.items()
    )

"""What the loaders of all processes ask of cores and file system in a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FILES_A_SHARD = 2
"""Opened for each: the tar, and the places of its samples."""


@dataclass(frozen=True, slots=True)
class Source:
    """A dataset of shards, as the mixture takes from it.

    Attributes:
        pairs: Pictures with captions.
        per_shard: Of them in a shard.
        share: Of the samples of a step, from 0 to 1.
    """

    pairs: int
    per_shard: int
    share: float


def cores_needed(batch_size: int, step_seconds: float, decoded_per_second: float) -> float:
    """Cores that a process's loader keeps busy.

    Args:
        batch_size: Samples a process and step.
        step_seconds: Of a step.
        decoded_per_second: Samples that one core reads, decodes and transforms.
    """
    return batch_size / step_seconds / decoded_per_second


def distinct(draws: float, of: int) -> float:
    """Expected number of different ones among so many independent draws from `of` equally likely ones."""
    return of * (1 - (1 - 1 / of) ** draws)


def steps_of_a_group(source: Source, window: int, step_size: int) -> float:
    """Steps that it takes all processes together to go through `window` shards.

    Args:
        source: What the shards are of.
        window: `datasets.NAME.shuffle_shards`.
        step_size: Samples a step, of all processes.
    """
    return window * source.per_shard / (source.share * step_size)


def shards_opened(source: Source, window: int, batch_size: int, processes: int, workers: int) -> float:
    """Shards that the loader of one process opens a step.

    All processes read the same `window` shards at a time. Each of a process's workers prepares every `workers`-th of
    its batches, and opens what it meets for the first time in the group; how many batches it takes from one follows
    from the steps that the group lasts, and is at least one. This holds for batches far smaller than a group, and for
    windows up to the shards that a worker keeps open (`OPEN_SHARDS`).

    Args:
        source: What the shards are of.
        window: `datasets.NAME.shuffle_shards`.
        batch_size: Samples a process and step.
        processes: Of the run.
        workers: Of the loader of each.
    """
    batches = max(1.0, steps_of_a_group(source, window, batch_size * processes) / workers)
    return distinct(batches * batch_size * source.share, window) / batches


def files_opened(sources: Sequence[Source], window: int, batch_size: int, processes: int, workers: int) -> float:
    """Files that all processes together open a step; arguments as for `shards_opened`."""
    a_process = sum(shards_opened(source, window, batch_size, processes, workers) for source in sources)
    return processes * FILES_A_SHARD * a_process


def busiest_file(sources: Sequence[Source], window: int, bytes_per_second: float) -> float:
    """Bytes/s asked of each file of the source that most is asked of, while all read `window` files of each.

    Args:
        sources: Of the mixture.
        window: `datasets.NAME.shuffle_shards`.
        bytes_per_second: Of all processes and sources together.
    """
    return max(source.share for source in sources) * bytes_per_second / window

"""What one process of many does by itself, measured by running it: the order, the sampler, the index, the pictures."""

from __future__ import annotations

import pickle
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch

from benchmarks.scaling.loading import Source
from benchmarks.shards import SIDE, timed, write_shards
from minigpt4.datasets.sampler import Key, SampleOrder, ShardShuffle, StepSampler
from minigpt4.datasets.shards import index as shard_index
from minigpt4.datasets.shards.dataset import ShardRecords
from minigpt4.datasets.shards.index import ROW, ShardEntry, ShardIndex, open_index
from minigpt4.processors.image import ImageProcessor

DECODED = "reading, decoding and transforming, samples/s"
ROUNDS = 5
SHARDS, PER_SHARD = 4, 250
"""Drawn for the rates of indexing, reading and decoding."""


def median_seconds(work: Callable[[], object]) -> float:
    """Of several times."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times)


def bytes_kept(work: Callable[[], object]) -> int:
    """Bytes of Python and numpy that what `work` returns takes up."""
    tracemalloc.start()
    result = work()
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del result
    return kept


def make_order(sources: Sequence[Source], window: int, seed: int = 42) -> SampleOrder:
    """The order of stage 1 at these sizes."""
    names = [f"source{number}" for number in range(len(sources))]
    orders = [
        ShardShuffle(f"{seed}-{name}", [one.per_shard] * (one.pairs // one.per_shard), window)
        for name, one in zip(names, sources, strict=True)
    ]
    return SampleOrder(names, [int(one.counts.sum()) for one in orders], [s.share for s in sources], seed, orders)


def sampler_seconds(order: SampleOrder, batch_size: int, processes: int, steps: int) -> float:
    """Seconds a step that one process in the middle needs to list its samples, the mean of so many steps."""
    sampler = StepSampler(order, batch_size=batch_size, world_size=processes, rank=processes // 2, stop_step=steps)
    return median_seconds(lambda: sum(1 for _ in sampler)) / steps


def resume_seconds(sources: Sequence[Source], window: int, batch_size: int, processes: int, step: int) -> float:
    """Seconds until a process that goes on at `step` has made the order and listed its first samples."""

    def first() -> list[Key]:
        sampler = StepSampler(
            make_order(sources, window),  # nothing is remembered of an earlier start
            batch_size=batch_size,
            world_size=processes,
            rank=processes // 2,
            start_step=step,
            stop_step=step + 1,
        )
        return next(iter(sampler))

    return median_seconds(first)


def make_table(folder: Path, sources: Sequence[Source]) -> list[Path]:
    """Empty files in place of shards, and the table that indexing whole ones would have written."""
    index = folder / shard_index.FOLDER
    index.mkdir(parents=True)
    paths = [folder / f"{number:05d}.tar" for number in range(sum(s.pairs // s.per_shard for s in sources))]
    table = {}
    for path in paths:
        path.touch()
        table[shard_index._name(path, index)] = ShardEntry(
            size=0,
            mtime_ns=path.stat().st_mtime_ns,
            samples=sources[0].per_shard,
            without_caption=0,
            without_picture=0,
            damage=None,
        )
    shard_index._write_table(index, table)
    return paths


def index_figures(folder: Path, sources: Sequence[Source]) -> dict[str, float]:
    """The index of all shards, in the main process and in the others."""
    paths = make_table(folder, sources)
    sent = pickle.dumps(open_index(paths, None))

    def take_over() -> ShardIndex:
        index: ShardIndex = pickle.loads(sent)
        assert index.is_here()
        return index

    return {
        "shards": len(paths),
        "index opened by the main process, s": median_seconds(lambda: open_index(paths, None)),
        "index taken over by another process, s": median_seconds(take_over),
        "index sent to each of them, bytes": len(sent),
        "index in memory, bytes": bytes_kept(take_over),
        "table on disk, bytes": (folder / shard_index.FOLDER / shard_index.TABLE).stat().st_size,
        "places of all samples on disk, bytes": ROW.itemsize * sum(s.pairs for s in sources),
    }


def picture_figures(folder: Path) -> dict[str, float]:
    """Rates of one core, on drawn pictures whose files are in memory already."""
    torch.set_num_threads(1)  # as in a loader's worker
    folder.mkdir()
    paths = write_shards(folder, SHARDS, PER_SHARD)
    indexed = timed(lambda: sum(entry.samples for entry in open_index(paths, None, processes=1).entries.values()))
    records = ShardRecords(open_index(paths, None), paths)
    order = ShardShuffle("scale", records.counts, SHARDS)
    numbers = [order.record(0, place) for place in range(len(records))]
    transform = ImageProcessor(SIDE)

    def decode() -> int:
        for number in numbers:
            sample = records.sample(number)
            transform(sample.picture, sample.name)
        return len(numbers)

    return {
        "indexing, samples/s": indexed,
        "reading, samples/s": timed(lambda: len([records.sample(number).picture for number in numbers])),
        DECODED: timed(decode),
        "a drawn sample in its tar, bytes": sum(path.stat().st_size for path in paths) / len(numbers),
    }

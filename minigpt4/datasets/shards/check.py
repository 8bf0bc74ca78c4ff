"""Every shard looked through, every sample read once, the bad ones named."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from tqdm import tqdm

from minigpt4.common.errors import DataError
from minigpt4.common.schema import DatasetConfig
from minigpt4.common.types import Record
from minigpt4.datasets.check_report import Report
from minigpt4.datasets.readers.rows import RowProblem
from minigpt4.datasets.shards.dataset import SPLIT, index_shards
from minigpt4.datasets.shards.records import ShardRecords, ShardSample

THREADS = 4
AT_ONCE = 1024
"""Samples handed to the threads at a time, so that memory stays bounded."""


def check_shards(name: str, cfg: DatasetConfig, with_samples: bool = True) -> Report:
    """Look through a dataset's shards, and read every caption and picture in them.

    Args:
        name: The dataset's key in the configuration.
        cfg: Its configuration.
        with_samples: Read the samples; otherwise only the shards' headers are looked at.

    Raises:
        ConfigError: The patterns are wrong or match nothing.
        DataError: The index cannot be written.
    """
    index = index_shards(name, cfg)
    report = Report(unit=f"samples in {len(index.entries):,} shards")
    report.problems += [RowProblem(str(path), problem) for path, problem in index.problems().items()]
    for path, entry in index.entries.items():
        if entry.samples and entry.without_caption:
            report.warnings.append(f"{path}: {entry.without_caption:,} pictures without a caption are left out")
        if entry.without_picture:
            report.warnings.append(f"{path}: {entry.without_picture:,} captions without a picture are left out")
    records = ShardRecords(index, [path for path, entry in index.entries.items() if entry.samples])
    report.splits[SPLIT] = len(records)
    if with_samples:
        for found in tqdm(_read_all(records), total=len(records), desc=f"{name}: samples", disable=None):
            if isinstance(found, RowProblem):
                report.problems.append(found)
                report.splits[SPLIT] -= 1
            else:
                report.see(found)
    return report


def _read_all(records: ShardRecords) -> Iterator[Record | RowProblem]:
    def read(number: int) -> ShardSample | RowProblem:
        try:
            return records.sample(number)
        except DataError as error:
            return RowProblem(f"sample {number:,}", str(error))

    numbers = iter(range(len(records)))
    # Read here, one after the other; decoded by threads, because Pillow does that without Python's lock.
    with ThreadPoolExecutor(THREADS) as pool:
        while batch := list(islice(numbers, AT_ONCE)):
            yield from pool.map(_decode, map(read, batch))


def _decode(sample: ShardSample | RowProblem) -> Record | RowProblem:
    if isinstance(sample, RowProblem):
        return sample
    try:
        sample.open()
    except DataError as error:
        return RowProblem(sample.record.source, str(error))
    return sample.record

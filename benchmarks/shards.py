"""Samples a second out of shards, beside webdataset's own stream: python -m benchmarks.shards

Both read the same tars, decode the same JPEGs and apply the same image transform. Ours takes samples in the order that
training does, through its index; webdataset streams each shard from beginning to end.
"""

from __future__ import annotations

import argparse
import io
import random
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import webdataset
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe_machine
from minigpt4.datasets.sampler import ShardShuffle
from minigpt4.datasets.shards.dataset import ShardRecords
from minigpt4.datasets.shards.index import open_index
from minigpt4.processors.image import ImageProcessor

SIDE = 224
WINDOW = 16


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--per-shard", type=int, default=500)
    parser.add_argument("--samples", type=int, default=1000, help="samples a measurement")
    return parser.parse_args()


def write_shards(folder: Path, shards: int, per_shard: int) -> list[Path]:
    """Shards as img2dataset makes them; each image is a smooth pattern that compresses as a photo does."""
    draw = np.random.default_rng(0)
    paths = [folder / f"{number:05d}.tar" for number in range(shards)]
    for path in paths:
        with webdataset.TarWriter(str(path), encoder=False, mtime=0) as tar:
            for number in range(per_shard):
                coarse = Image.fromarray(draw.integers(0, 256, (28, 28, 3), dtype=np.uint8))
                jpeg = io.BytesIO()
                coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(jpeg, "JPEG", quality=95)
                sample = {"jpg": jpeg.getvalue(), "txt": b"a caption", "json": b'{"caption": "a caption"}'}
                tar.write({"__key__": f"{number:09d}", **sample})
    return paths


def timed(work: Callable[[], int]) -> float:
    """Samples a second."""
    start = time.perf_counter()
    count = work()
    return count / (time.perf_counter() - start)


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)  # as in a loader's worker
    transform = ImageProcessor(SIDE)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_shards(Path(folder), args.shards, args.per_shard)
        total = args.shards * args.per_shard
        indexed = timed(lambda: sum(e.samples for e in open_index(paths, None, processes=1).entries.values()))
        records = ShardRecords(open_index(paths, None))
        order = ShardShuffle("benchmark", records.counts, WINDOW)
        in_order = [order.record(0, place) for place in range(min(args.samples, total))]
        anywhere = random.Random(0).sample(range(total), len(in_order))

        def read(numbers: list[int], decode: bool) -> int:
            for number in numbers:
                sample = records.sample(number)
                if decode:
                    transform(sample.image, sample.image_name)
            return len(numbers)

        def stream(decode: bool) -> int:
            samples = islice(webdataset.WebDataset([str(path) for path in paths], shardshuffle=False), len(in_order))
            for sample in samples:
                if decode:
                    transform(sample["jpg"], sample["__key__"])
            return len(in_order)

        table = Table("samples/s, one process", "read", "read, decoded and transformed")
        table.add_row("webdataset, streaming", *(f"{timed(lambda d=d: stream(d)):,.0f}" for d in (False, True)))
        for name, numbers in (("ours, in training order", in_order), ("ours, any order", anywhere)):
            rates = (f"{timed(lambda n=numbers, d=d: read(n, d)):,.0f}" for d in (False, True))
            table.add_row(name, *rates)
        console = Console()
        console.print(describe_machine(torch.device("cpu")))
        console.print(table)
        console.print(f"indexing, once: {indexed:,.0f} samples/s a process")


if __name__ == "__main__":
    main()

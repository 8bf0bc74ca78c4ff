"""The feature cache beside the images themselves: python -m benchmarks.cache

An epoch needs each image's queries. Without a cache they are decoded, prepared and encoded every time; with it they
are encoded once, written, and read back in the shuffled order of training.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from benchmarks.data import draw_photos
from benchmarks.machine import describe_machine, interleaved
from benchmarks.presets import IMAGE_SIZE, PRESETS, build_ours
from benchmarks.report import DTYPES, add_common_arguments, prepare_device, report
from minigpt4.datasets.feature_cache import FeatureCache, write_shard
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.processors.image import ImageProcessor, stack_images

IDENTITY = {"made by": "benchmarks.cache"}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    parser.add_argument("--pictures", dest="images", metavar="NUMBER", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    add_common_arguments(parser)
    return parser.parse_args()


def encode(model: MiniGPT4, files: list[Path], size: int) -> Tensor:
    """Files -> queries in float16 on the CPU, (N, Q, width)."""
    processor = ImageProcessor(IMAGE_SIZE)
    queries = []
    for start in range(0, len(files), size):
        images = stack_images([processor(file) for file in files[start : start + size]])
        queries.append(model.encode_queries(images.to(model.device)).to("cpu", torch.float16))
    return torch.cat(queries)


def main() -> None:
    args = parse_arguments()
    device, preset = prepare_device(args.device), PRESETS[args.preset]
    model = build_ours(preset, DTYPES[args.dtype], device)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = draw_photos(folder, args.images)
        order = Random(0).sample(files, len(files))
        shard = write_shard(folder / "cache", [file.name for file in files], encode(model, files, args.batch_size))
        cache = FeatureCache(folder / "cache", IDENTITY)

        def read() -> Tensor:
            return torch.stack([cache.get(file.name) for file in order])

        def fill() -> Tensor:
            queries = encode(model, order, args.batch_size)
            write_shard(folder / "another", [file.name for file in order], queries)
            return queries

        works = {"decode and encode": lambda: encode(model, order, args.batch_size), "fill": fill, "read": read}
        measured = interleaved(works, args.rounds, device)
        first = measured["decode and encode"]
        rows = {
            f"{name} ({args.dtype})": {
                "images/s": args.images / one.seconds,
                "times as fast": first.seconds / one.seconds,
                "largest difference": float((one.result - first.result).abs().max()),
            }
            for name, one in measured.items()
        }
        facts = {
            "machine": describe_machine(device),
            "size": f"{shard.stat().st_size / args.images / 1024:.1f} KiB an image "
            f"(files of {sum(file.stat().st_size for file in files) / args.images / 1024:.1f} KiB)",
        }
    report(f"Features of {args.images} images, {preset.name} preset", rows, facts, args.out)


if __name__ == "__main__":
    main()

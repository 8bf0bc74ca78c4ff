"""From a photograph's file to the model's input, beside the usual Pillow pipeline: python -m benchmarks.data"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchvision import transforms
from torchvision.io import ImageReadMode, decode_jpeg

from benchmarks.machine import describe_machine, interleaved
from minigpt4.common.types import Encoded, Sample
from minigpt4.datasets.loaders import BatchLoader, collate
from minigpt4.processors.image import (
    CLIP_MEAN,
    CLIP_STD,
    ImageProcessor,
    normalize,
)
from minigpt4.runners.metrics import timed

CPU = torch.device("cpu")
SIZE = 224
WIDTH, HEIGHT = 500, 375
QUALITY = 90
SCALES = ((4, 70), (12, 40), (40, 25), (120, 12))
"""Cells across the image, and their contrast in grey levels."""
PILLOW, OURS, UNNORMALISED, FLOOR = "Pillow, floats", "ours", "ours, before normalising", "floor: decoding alone"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="folder of photographs (default: drawn, 500 x 375)")
    parser.add_argument("--count", type=int, default=60, help="photographs at most")
    parser.add_argument("--rounds", type=int, default=9, help="counted rounds over all photographs")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2, help="of the loader")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    return parser.parse_args()


def draw_photo(seed: int) -> Image.Image:
    """An image with structure at every scale and a camera's noise."""
    generator = np.random.default_rng(seed)
    total = generator.normal(120, 5, size=(HEIGHT, WIDTH, 1)).repeat(3, axis=2)
    for cells, contrast in SCALES:
        coarse = generator.normal(size=(cells * 3 // 4, cells, 3)).astype(np.float32)
        planes = [
            Image.fromarray(coarse[..., channel]).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
            for channel in range(3)
        ]
        total += contrast * np.stack([np.asarray(plane) for plane in planes], axis=-1)
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def draw_photos(folder: Path, count: int) -> list[Path]:
    """Write photographs, the same on every machine."""
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        draw_photo(number).save(path, quality=QUALITY, subsampling="4:2:0")
    return paths


def pillow_pipeline() -> Callable[[Path], Tensor]:
    """What MiniGPT-4 and LAVIS do: floats as soon as the image is resized."""
    transform = transforms.Compose(
        [
            transforms.Resize((SIZE, SIZE), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )

    def load(path: Path) -> Tensor:
        with Image.open(path) as image:
            tensor: Tensor = transform(image.convert("RGB"))
        return tensor

    return load


def each(work: Callable[[Any], object], items: Sequence[Any]) -> Callable[[], None]:
    """Work that goes over all items."""

    def run() -> None:
        for item in items:
            work(item)

    return run


def levels_apart(paths: Sequence[Path], processor: ImageProcessor) -> dict[str, float]:
    """How far our pixels are from Pillow's, in grey levels."""
    apart = []
    for path in paths:
        with Image.open(path) as image:
            square = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        plain = torch.from_numpy(np.array(square)).movedim(-1, 0)
        apart.append((processor(path).int() - plain.int()).abs().flatten())
    levels = torch.cat(apart)
    return {
        "largest": int(levels.max()),
        "share_of_one": float((levels == 1).double().mean()),
        "share_above_one": float((levels > 1).double().mean()),
    }


class Photos(torch.utils.data.Dataset[Sample]):
    """Each photograph as a sample without text, several times over."""

    def __init__(self, paths: Sequence[Path], length: int) -> None:
        self.paths = paths
        self.length = length
        self.processor = ImageProcessor(SIZE)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        image = self.processor(self.paths[index % len(self.paths)])
        return Sample(image_id=str(index), images=(image,), encoded=Encoded(input_ids=[1, 2], labels=[-100, 2]))


def loader_rate(paths: Sequence[Path], workers: int, batch_size: int) -> float:
    """Photographs a second out of the loader, its workers already started."""
    photos = Photos(paths, length=40 * batch_size)
    loader = BatchLoader(
        photos, batch_size=batch_size, num_workers=workers, persistent_workers=workers > 0, collate_fn=collate
    )
    for _ in loader:
        pass
    return len(photos) / timed(lambda: list(map(len, (batch.image_ids for batch in loader))), CPU)


def measure(paths: Sequence[Path], args: argparse.Namespace) -> dict[str, Any]:
    """Every figure; on one thread."""
    processor = ImageProcessor(SIZE)
    encoded = [torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8) for path in paths]
    measured = interleaved(
        {
            PILLOW: each(pillow_pipeline(), paths),
            OURS: each(lambda path: normalize(processor(path)), paths),
            UNNORMALISED: each(lambda path: processor(path), paths),
            FLOOR: each(lambda data: decode_jpeg(data, mode=ImageReadMode.RGB), encoded),
        },
        args.rounds,
        CPU,
    )
    ratios = {
        name: median(pillow / own for pillow, own in zip(measured[PILLOW].times, one.times, strict=True))
        for name, one in measured.items()
    }
    return {
        "machine": describe_machine(CPU),
        "photographs": "drawn" if args.images is None else "given",
        "mean_kilobytes": sum(map(len, encoded)) / len(encoded) / 1000,
        "images_per_second_and_core": {name: len(paths) / one.seconds for name, one in measured.items()},
        "times_as_fast_as_pillow": ratios,
        "grey_levels_apart": levels_apart(paths, processor),
        "workers": args.workers,
        "loader_images_per_second": loader_rate(paths, args.workers, args.batch_size),
    }


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        if args.images is None:
            paths = draw_photos(Path(folder), args.count)
        else:
            paths = sorted(args.images.glob("*.jpg"))[: args.count]
        figures = measure(paths, args)
    _show(figures)
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _show(figures: dict[str, Any]) -> None:
    rates = figures["images_per_second_and_core"]
    table = Table("", "images/s", "times as fast", "times the floor", title="From a JPEG file to the model's input")
    for name, rate in rates.items():
        ratio = f"{figures['times_as_fast_as_pillow'][name]:.2f}"
        table.add_row(name, f"{rate:.0f}", ratio, f"{rates[FLOOR] / rate:.2f}")
    table.add_row(f"loader, {figures['workers']} workers", f"{figures['loader_images_per_second']:.0f}", "", "")
    apart = figures["grey_levels_apart"]
    console = Console(width=110)
    console.print(table)
    console.print(
        f"{figures['machine']}; {figures['photographs']} photographs of {figures['mean_kilobytes']:.0f} kB; "
        f"grey levels apart from Pillow: {apart['largest']} at most, "
        f"one for {apart['share_of_one']:.2%} of the values, more for {apart['share_above_one']:.1e}"
    )


if __name__ == "__main__":
    main()

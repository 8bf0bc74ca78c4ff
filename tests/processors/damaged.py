"""Image files with some bytes changed or cut off."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from typing import Any

from PIL import Image

KINDS = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "ICO")


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of an image file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def damaged_files(count: int) -> Iterator[bytes]:
    """The same ones each time; some can still be read."""
    rng = random.Random(0)
    image = Image.linear_gradient("L").resize((48, 48)).convert("RGB")
    intact = [saved(image.quantize(16) if kind == "GIF" else image, kind) for kind in KINDS]
    for number in range(count):
        data = bytearray(intact[number % len(intact)])
        for _ in range(rng.choice((1, 3, 30))):
            data[rng.randrange(min(len(data), rng.choice((40, 4000))))] = rng.randrange(256)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        yield bytes(data)

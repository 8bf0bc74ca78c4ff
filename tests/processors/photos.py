"""Images as cameras make them, drawn: smooth shapes, edges and noise."""

from __future__ import annotations

import numpy as np
from PIL import Image


def draw_photo(seed: int, width: int, height: int) -> Image.Image:
    """An RGB image with structure at every scale, the same for the same arguments."""
    generator = np.random.default_rng(seed)
    total = np.full((height, width, 3), 120.0)
    for cells, contrast in ((3, 60), (17, 35), (60, 20)):
        coarse = generator.normal(size=(cells, cells, 3)).astype(np.float32)
        planes = [
            Image.fromarray(coarse[..., channel]).resize((width, height), Image.Resampling.BICUBIC)
            for channel in range(3)
        ]
        total += contrast * np.stack([np.asarray(plane) for plane in planes], axis=-1)
    total[height // 3 : height // 2, width // 4 : width // 2] = 255  # hard edges overshoot
    total += generator.normal(scale=5, size=(height, width, 1))
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))

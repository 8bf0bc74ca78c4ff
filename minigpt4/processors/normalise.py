"""uint8 pictures -> the floats that the vision encoder takes."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@lru_cache(maxsize=16)
def _scale_and_shift(device: torch.device, width: int) -> tuple[Tensor, Tensor]:
    """(level / 255 - mean) / std as level * scale + shift, for a row of so many pixels, (3 * width,) each.

    Kept, since copying stalls a device; for a whole row, since three numbers at a time are slow on a CPU.
    """
    with torch.inference_mode(False):  # what is kept must serve in training too
        mean, std = (torch.tensor(values, dtype=torch.float64).repeat(width) for values in (CLIP_MEAN, CLIP_STD))
        return (1 / (255 * std)).to(device, torch.float32), (-mean / std).to(device, torch.float32)


def normalise(pixels: Tensor) -> Tensor:
    """Scale pictures to [0, 1] and normalise them by CLIP's statistics, on the device they are on.

    Pictures travel as uint8, a quarter of the bytes, and become floats here, at the last moment.

    Args:
        pixels: (..., 3, S, S) uint8; floats are normalised already, by whoever made them, and come back as they are.

    Returns:
        (..., 3, S, S) float32, pixel by pixel in memory (`stack_pictures`), or `pixels` itself.
    """
    if pixels.dtype is not torch.uint8:
        return pixels
    rows = pixels.movedim(-3, -1).flatten(-2)
    scale, shift = _scale_and_shift(pixels.device, pixels.shape[-1])
    return torch.addcmul(shift, rows, scale).unflatten(-1, (-1, 3)).movedim(-1, -3)

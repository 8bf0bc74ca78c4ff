"""The tiny models that ship with the package know drawn shapes only: recognising them, and images unlike their own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from minigpt4.common.checkpoint import fingerprint
from minigpt4.common.files import asset

NOTE = (
    "This is the tiny model that ships with the package for trying it out. It knows drawn scenes of coloured shapes, "
    "and nothing of photographs."
)
"""What a user should know before asking it anything."""
UNKNOWN_IMAGE = (
    "This does not look like a drawn scene. The model is a toy that knows nothing but coloured shapes, so its answer "
    "means nothing; for photographs load a real model (README.md says where its weights are from)."
)
FILES: tuple[Mapping[str, str], ...] = (
    {"vit_weights": "tiny/eva_vit.pth", "q_former_model": "tiny/qformer.pth", "llama_model": "tiny/llama"},
    {"vit_weights": "tiny_v2/eva_vit.pth", "llama_model": "tiny_v2/llama"},
)
"""The frozen parts of each; a projection trained on them knows no more than they do."""
COLOURS = 5
"""Most plain colours of a drawn scene: two of the background and three of its objects."""
TOLERANCE = 8
"""Grey levels by which a pixel differs at most from its plain colour."""
GREY_TOLERANCE = 3
"""The same in images without any colour, whose pixels differ along one axis only."""
_GREY = 2
"""Largest difference between the channels of a pixel without colour."""
PLAIN_SHARE = 0.74
"""Share of the pixels in plain colours from which an image counts as drawn; the rest are edges and JPEG's traces."""
_BIN = 8
"""Side in grey levels of the cubes in which colours are counted."""


def is_toy(base: Mapping[str, str]) -> bool:
    """Whether a model has the frozen parts of a tiny model, by content, wherever their files are.

    Args:
        base: names of the frozen parts -> fingerprints (`MiniGPT4.base`).
    """
    return any(all(base.get(name) == fingerprint(asset(file)) for name, file in files.items()) for files in FILES)


def looks_drawn(pixels: Tensor) -> bool:
    """Whether nearly all of an image is painted in a few plain colours, as drawn scenes are and photographs are not.

    Measured at the tiny model's size: 1 in 12,000 drawn scenes is taken for a photograph (PNG, and JPEG of quality 95,
    of 64 to 512 pixels; at quality 75 also 1 in 400 of 128 pixels, and 1 in 6 of 64), and 4 in 150 photographs are
    taken for drawn (5 when they are turned grey): they show something in front of a plain background.

    Args:
        pixels: the image, (3, H, W) uint8.
    """
    colours = pixels.flatten(1).T.numpy().astype(np.int16)
    grey = bool((colours.max(axis=1) - colours.min(axis=1)).max() <= _GREY)
    tolerance = GREY_TOLERANCE if grey else TOLERANCE
    plain, left = 0, colours
    for _ in range(COLOURS):
        if not len(left):
            break
        red, green, blue = (left // _BIN).T.astype(np.int32)
        _, cubes, counts = np.unique((red << 10) | (green << 5) | blue, return_inverse=True, return_counts=True)
        commonest = np.median(left[cubes == counts.argmax()], axis=0)
        near = np.abs(left - commonest).max(axis=1) <= tolerance
        plain += int(near.sum())
        left = left[~near]
    return plain >= PLAIN_SHARE * len(colours)

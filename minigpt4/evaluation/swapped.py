"""Captions held against other pictures: what a model says without looking scores the same on these."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random


def swap_pictures(captions: Mapping[str, str], seed: int) -> dict[str, str]:
    """Give each picture's place another picture, and so that one's caption.

    With one prompt for all and no sampling, what a model says of a picture does not depend on the place the picture is
    shown in; so the captions of swapped pictures are the captions, swapped, and need no second generation.

    Args:
        captions: Image -> caption, two at least for a swap to be possible.
        seed: Fixes the swap.

    Returns:
        Image -> the caption of the picture shown instead; no picture stands for itself.
    """
    shuffled = list(captions)
    Random(f"{seed}-swap").shuffle(shuffled)
    shown = dict(zip(shuffled, shuffled[1:] + shuffled[:1], strict=True))
    return {image: captions[shown[image]] for image in captions}

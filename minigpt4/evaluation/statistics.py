"""How far a score can be trusted: bootstrap intervals over the images, and the shuffled-image control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

import numpy as np

AVERAGED = ("ROUGE_L", "CIDEr")
"""Metrics whose corpus score is the mean of the images' scores. BLEU and METEOR are not: the mean of
their images' scores is another number, around which an interval would mislead."""

NOTE = (
    "95 % percentile bootstrap over the images (1,000 draws); only for metrics that are means over the images; "
    "CIDEr's word weights are kept fixed"
)


def bootstrap_intervals(
    per_image: Mapping[str, Mapping[str, float]],
    metrics: Sequence[str] = AVERAGED,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """95 % intervals of the means of per-image scores.

    Args:
        per_image: image id -> metric -> score.
        metrics: which of them to take, where they are there.
        draws: number of resampled sets of images.
        seed: of the resampling; the same images are drawn for every metric and every checkpoint.

    Returns:
        Metric -> (lower, upper); empty for fewer than two images.
    """
    if len(per_image) < 2:
        return {}
    found = {}
    for metric in metrics:
        scores = np.array([values[metric] for values in per_image.values() if metric in values])
        if len(scores) != len(per_image):
            continue
        # Drawn one by one: all at once would take gigabytes for a big test set.
        generator = np.random.default_rng(seed)
        means = [scores[generator.integers(0, len(scores), len(scores))].mean() for _ in range(draws)]
        low, high = np.percentile(means, [2.5, 97.5])
        found[metric] = (float(low), float(high))
    return found


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

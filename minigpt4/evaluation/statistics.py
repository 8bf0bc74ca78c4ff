"""How far a score can be trusted: bootstrap intervals over the images, and the shuffled-image control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

import numpy as np

AVERAGED = ("ROUGE_L", "CIDEr", "SPICE")
"""Metrics whose corpus score is the mean of the images' scores. BLEU and METEOR are not: the mean of their images'
scores is another number, and an interval around it would mislead."""

NOTE = (
    "95 % percentile bootstrap over the images (1,000 draws); only for metrics that are means over the images; "
    "CIDEr's word weights are kept fixed"
)
"""How results describe the intervals."""

Intervals = Mapping[str, Mapping[str, Sequence[float]]]
"""Checkpoint -> metric -> (lower, upper)."""


def bootstrap_intervals(
    per_image: Mapping[str, Mapping[str, float]],
    metrics: Sequence[str] = AVERAGED,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """95 % intervals of the means of per-image scores.

    Args:
        per_image: image id -> metric -> score.
        metrics: metrics to use; those without a score for every image are left out.
        draws: number of resampled sets of images.
        seed: seed of the resampling; every metric and checkpoint uses the same resampled sets.

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
        # One draw at a time: all at once would take gigabytes for a large test set.
        generator = np.random.default_rng(seed)
        means = [scores[generator.integers(0, len(scores), len(scores))].mean() for _ in range(draws)]
        low, high = np.percentile(means, [2.5, 97.5])
        found[metric] = (float(low), float(high))
    return found


def swap_images(captions: Mapping[str, str], seed: int) -> dict[str, str]:
    """The captions as if each image had been replaced by another one of the set.

    With the same prompt for all images and no sampling, a caption depends on nothing but its image. The captions of
    shuffled images are therefore the shuffled captions, and need no second generation. Where images have questions of
    their own, the shuffled captions answer other questions as well.

    Args:
        captions: image id -> caption, for at least two images.
        seed: seed of the permutation.

    Returns:
        Image id -> caption of the image shown instead; no image keeps its own caption.
    """
    shuffled = list(captions)
    Random(f"{seed}-swap").shuffle(shuffled)
    shown = dict(zip(shuffled, shuffled[1:] + shuffled[:1], strict=True))
    return {image: captions[shown[image]] for image in captions}

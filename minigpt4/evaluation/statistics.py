"""How far a score can be trusted: bootstrap intervals, the shuffled-image control, and paired comparisons."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np
from numpy.typing import NDArray

from minigpt4.evaluation.table import KNOWN, SHOWN, column

AVERAGED = tuple(item.key for item in KNOWN if item.averaged)
"""Metrics whose corpus score is the mean of the images' scores. BLEU and METEOR are not: the mean of their images'
scores is another number, and an interval around it would mislead."""

PerImage = dict[str, dict[str, float]]
"""Image or question id -> metric -> score."""
Intervals = Mapping[str, Mapping[str, Sequence[float]]]
"""Checkpoint -> metric -> (lower, upper)."""


def intervals_note(unit: str = "images") -> str:
    """How results describe the intervals; `unit` is what the scores are means over."""
    note = f"95 % percentile bootstrap over the {unit} (1,000 draws); only for metrics that are means over the {unit}"
    return f"{note}{_fixed_weights(unit)}"


@dataclass(frozen=True)
class Scores:
    """Scores of one set of predictions.

    Attributes:
        corpus: metric -> score of the corpus, by the keys of `table.KNOWN`.
        per_image: image or question id -> metric -> score of that prediction.
        controls: name -> score of the corpus where each prediction is another image's: CIDEr_shuffled.
        bleu_counts: image id -> what BLEU sums over the images: matches of 1- to 4-grams, 1- to 4-grams, words, and
            words of the reference closest in length; empty where BLEU was not computed.
    """

    corpus: dict[str, float]
    per_image: PerImage
    controls: dict[str, float] = field(default_factory=dict)
    bleu_counts: dict[str, tuple[int, ...]] = field(default_factory=dict)


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


Array = NDArray[np.float64]

DRAWS = 1000
"""Resampled sets of images of an interval."""
RANDOMISATIONS = 9999
"""Random exchanges of captions of a p value, which is at least 1 / (1 + this)."""
_CHUNK = 500_000
"""Random numbers drawn at a time, so that a large test set needs little memory."""
_BLEU = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4")
_DIGITS = 6


@dataclass(frozen=True)
class Difference:
    """A checkpoint's score minus the first checkpoint's.

    Attributes:
        checkpoint: label of the checkpoint.
        metric: key of the metric.
        difference: difference of the corpus scores.
        low: lower end of its 95 % interval.
        high: upper end.
        p: p value of approximate randomisation, two-sided.
        p_holm: the same after Holm's correction for all differences of the table.
    """

    checkpoint: str
    metric: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float

    def parts(self) -> tuple[str, str, str]:
        """As shown to people: difference, interval and p after Holm's correction; +0.123, 0.045 to 0.201, p 0.003."""
        p = f"p {self.p_holm:.3f}" if self.p_holm >= 0.001 else "p < 0.001"
        return f"{self.difference:+.3f}", f"{self.low:.3f} to {self.high:.3f}", p


@dataclass(frozen=True)
class Comparisons:
    """The differences of a table.

    Attributes:
        baseline: label of the first checkpoint, which the others are compared with.
        differences: one for each other checkpoint and metric.
        note: how they were computed, and which metrics are not among them.
    """

    baseline: str
    differences: Sequence[Difference]
    note: str

    def to_dict(self) -> dict[str, object]:
        """As plain data for metrics.json."""
        listed = [
            {
                "checkpoint": item.checkpoint,
                "metric": item.metric,
                "difference": item.difference,
                "interval_95": [item.low, item.high],
                "p": item.p,
                "p_holm": item.p_holm,
            }
            for item in self.differences
        ]
        return {"baseline": self.baseline, "note": self.note, "differences": listed}

    def footnote(self) -> str:
        """A line for each checkpoint with its difference in the first metric of `SHOWN`."""
        metrics = {item.metric for item in self.differences}
        shown = next((name for name in SHOWN if name in metrics), next(iter(metrics)))
        chosen = [(item.checkpoint, *item.parts()) for item in self.differences if item.metric == shown]
        lines = [f"{label}: {difference} ({interval}), {p}" for label, difference, interval, p in chosen]
        head = f"{column(shown).label} minus that of {self.baseline} (95 % interval, p after Holm's correction):"
        return "\n".join([head, *lines])


def compare(scores: Mapping[str, Scores], seed: int = 0, unit: str = "images") -> Comparisons | None:
    """Compare every checkpoint with the first.

    Args:
        scores: checkpoint -> scores of the same images, the first one to be compared with.
        seed: seed of both kinds of resampling.
        unit: what is resampled, for the note: images or questions.

    Returns:
        The comparisons; None for fewer than two checkpoints or images, or without a metric that can be resampled.
    """
    labels = list(scores)
    ids = list(scores[labels[0]].per_image) if labels else []
    metrics = [metric for metric in (*_BLEU, *AVERAGED) if _has(scores.values(), metric, ids)]
    if len(labels) < 2 or len(ids) < 2 or not metrics:
        return None
    averaged = [metric for metric in metrics if metric not in _BLEU]
    with_bleu = len(averaged) < len(metrics)
    # (images, quantities) of each checkpoint: a corpus score is a function of their sums over the images.
    values = [_values(scores[label], ids, averaged, with_bleu) for label in labels]

    def corpus(sums: Array) -> Array:
        """(..., quantities) -> (..., metrics)."""
        means = sums[..., : len(averaged)] / len(ids)
        return np.concatenate([corpus_bleu(sums[..., len(averaged) :]), means], axis=-1) if with_bleu else means

    lows, highs = _intervals(values, corpus, seed)
    p_values = _p_values(values, corpus, seed)
    found = corpus(np.stack([value.sum(axis=0) for value in values]))
    differences = found[1:] - found[0]
    adjusted = holm(p_values.ravel()).reshape(p_values.shape)
    # A metric that was measured but cannot be resampled.
    left_out = [name for name in scores[labels[0]].corpus if name not in metrics and column(name).compared]
    return Comparisons(
        labels[0],
        [
            Difference(
                label,
                metric,
                *(
                    round(float(table[row, number]), _DIGITS)
                    for table in (differences, lows, highs, p_values, adjusted)
                ),
            )
            for row, label in enumerate(labels[1:])
            for number, metric in enumerate(metrics)
        ],
        _note(p_values.size, left_out, unit),
    )


def corpus_bleu(sums: Array) -> Array:
    """BLEU-1 to BLEU-4 of a corpus, as pycocoevalcap's BleuScorer computes them.

    Args:
        sums: sums of `Scores.bleu_counts` over the images, (..., 10).

    Returns:
        (..., 4).
    """
    small, tiny = 1e-9, 1e-15  # BleuScorer's own
    matches, grams, words, reference = sums[..., :4], sums[..., 4:8], sums[..., 8:9], sums[..., 9:]
    precision = np.cumprod((matches + tiny) / (grams + small), axis=-1) ** (1 / np.arange(1, 5))
    ratio = (words + tiny) / (reference + small)
    bleu: Array = precision * np.exp(np.minimum(0, 1 - 1 / ratio))
    return bleu


def holm(p_values: Array) -> Array:
    """P values after Holm's correction, which keeps the chance of any false one at the level (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    scaled = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(scaled))
    return adjusted


def _intervals(values: Sequence[Array], corpus: Callable[[Array], Array], seed: int) -> tuple[Array, Array]:
    """Lower and upper ends, (checkpoints - 1, metrics) each."""
    images = len(values[0])
    generator = np.random.default_rng([seed, 0])
    drawn = []
    for count in _chunks(DRAWS, images):
        # How often each image is in each of the resampled sets: (sets, images).
        chosen = generator.integers(0, images, (count, images)) + images * np.arange(count)[:, None]
        weights = np.bincount(chosen.ravel(), minlength=count * images).reshape(count, images).astype(float)
        sampled = corpus(np.stack([weights @ value for value in values]))
        drawn.append(sampled[1:] - sampled[0])
    low, high = np.percentile(np.concatenate(drawn, axis=1), [2.5, 97.5], axis=1)
    return low, high


def _p_values(values: Sequence[Array], corpus: Callable[[Array], Array], seed: int) -> Array:
    """Two-sided p values, (checkpoints - 1, metrics)."""
    first, others = values[0].sum(axis=0), np.stack([value.sum(axis=0) for value in values[1:]])
    gains = [value - values[0] for value in values[1:]]
    # Sums in another order differ in their last digits, which must not tell equal differences apart.
    observed = np.abs(corpus(others) - corpus(first)) - 1e-9
    generator = np.random.default_rng([seed, 1])
    as_large = np.zeros(observed.shape)
    for count in _chunks(RANDOMISATIONS, len(values[0])):
        exchanged = generator.integers(0, 2, (count, len(values[0]))).astype(float)
        moved = np.stack([exchanged @ gain for gain in gains], axis=1)
        as_large += (np.abs(corpus(others - moved) - corpus(first + moved)) >= observed).sum(axis=0)
    p_values: Array = (1 + as_large) / (1 + RANDOMISATIONS)
    return p_values


def _chunks(draws: int, images: int) -> Iterator[int]:
    """Sizes of the parts in which that many draws are made."""
    size = max(1, _CHUNK // images)
    for start in range(0, draws, size):
        yield min(size, draws - start)


def _has(scores: Iterable[Scores], metric: str, ids: Sequence[str]) -> bool:
    """Whether all checkpoints have what a metric's corpus score is made of, for every image."""
    return all(
        metric in item.corpus
        and (
            item.bleu_counts.keys() == set(ids)
            if metric in _BLEU
            else all(metric in item.per_image.get(key, {}) for key in ids)
        )
        for item in scores
    )


def _values(scores: Scores, ids: Sequence[str], averaged: Sequence[str], with_bleu: bool) -> Array:
    """What the corpus scores are made of, for every image: scores to average, then counts of n-grams."""
    return np.array(
        [
            [*(scores.per_image[key][metric] for metric in averaged), *(scores.bleu_counts[key] if with_bleu else ())]
            for key in ids
        ],
        dtype=float,
    )


def _fixed_weights(unit: str) -> str:
    return "; CIDEr's word weights are kept fixed" if unit == "images" else ""


def _note(count: int, left_out: Sequence[str], unit: str) -> str:
    missing = "; ".join(
        f"{column(name).label} is left out: its corpus score cannot be computed from scores of {unit}"
        for name in left_out
    )
    return (
        f"checkpoint minus first checkpoint; 95 % percentile bootstrap over the {unit}, paired ({DRAWS:,} draws); "
        f"p by approximate randomisation ({RANDOMISATIONS:,} exchanges), two-sided, shown after Holm's correction over "
        f"all {count} comparisons (p_holm in metrics.json){_fixed_weights(unit)}" + (f"; {missing}" if missing else "")
    )

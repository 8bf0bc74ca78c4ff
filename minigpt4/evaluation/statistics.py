"""How far a score can be trusted: bootstrap intervals, the shuffled-image control, and paired comparisons."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np
from numpy.typing import NDArray

from minigpt4.evaluation.table import KNOWN, SHOWN, column

AVERAGED = tuple(item.key for item in KNOWN if item.averaged)
"""Metrics whose corpus score is the mean of the images' scores. BLEU and METEOR are not: the mean of their images'
scores is another number, and an interval around it would mislead; it is computed from counts (`COUNTED`)."""

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
        counts: name of `COUNTED` -> image id -> what that scorer sums over the images, for those that were computed.
    """

    corpus: dict[str, float]
    per_image: PerImage
    controls: dict[str, float] = field(default_factory=dict)
    counts: dict[str, dict[str, tuple[float, ...]]] = field(default_factory=dict)


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
    counted = [
        name for name in COUNTED if all(item.counts.get(name, {}).keys() == set(ids) for item in scores.values())
    ]
    averaged = [
        name
        for name in AVERAGED
        if all(name in item.corpus and name in item.per_image.get(key, {}) for item in scores.values() for key in ids)
    ]
    metrics = [metric for name in counted for metric in COUNTED[name].metrics] + averaged
    if len(labels) < 2 or len(ids) < 2 or not metrics:
        return None
    # (images, quantities) of each checkpoint: a corpus score is a function of their sums over the images.
    values = [_values(scores[label], ids, counted, averaged) for label in labels]

    def corpus(sums: Array) -> Array:
        """(..., quantities) -> (..., metrics)."""
        *parts, totals = np.split(sums, np.cumsum([COUNTED[name].quantities for name in counted]), axis=-1)
        found = [COUNTED[name].corpus(part) for name, part in zip(counted, parts, strict=True)]
        return np.concatenate([*found, totals / len(ids)], axis=-1)

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
        _note(p_values.size, metrics, left_out, unit),
    )


def corpus_bleu(sums: Array) -> Array:
    """BLEU-1 to BLEU-4 of a corpus, as pycocoevalcap's BleuScorer computes them.

    Args:
        sums: matches of 1- to 4-grams, 1- to 4-grams, words, and words of the references closest in length, summed
            over the images, (..., 10).

    Returns:
        (..., 4).
    """
    small, tiny = 1e-9, 1e-15  # BleuScorer's own
    matches, grams, words, reference = sums[..., :4], sums[..., 4:8], sums[..., 8:9], sums[..., 9:]
    precision = np.cumprod((matches + tiny) / (grams + small), axis=-1) ** (1 / np.arange(1, 5))
    ratio = (words + tiny) / (reference + small)
    bleu: Array = precision * np.exp(np.minimum(0, 1 - 1 / ratio))
    return bleu


def corpus_meteor(sums: Array) -> Array:
    """METEOR 1.5 of a corpus, with its parameters for English (Denkowski and Lavie, 2014).

    Args:
        sums: weighted matches and weighted words of the captions, the same of the references, chunks of matches that
            stand together, and matched words of both, summed over the images, (..., 6).

    Returns:
        (..., 1); 0 where nothing matches.
    """
    alpha, beta, gamma = 0.85, 0.2, 0.6
    matches, words, reference_matches, reference_words, chunks, matched = np.moveaxis(sums, -1, 0)
    some = np.minimum(matches, reference_matches) > 0

    def ratio(above: Array, below: Array) -> Array:
        return np.divide(above, below, out=np.zeros_like(above), where=some)

    mean = ratio(
        np.ones_like(matches), (1 - alpha) * ratio(words, matches) + alpha * ratio(reference_words, reference_matches)
    )
    return (mean * (1 - gamma * ratio(chunks, matched / 2) ** beta))[..., None]


@dataclass(frozen=True)
class CountedScorer:
    """A scorer whose corpus score is a function of counts summed over the images.

    Attributes:
        metrics: what it measures.
        quantities: number of counts of an image.
        corpus: sums of counts (..., quantities) -> corpus scores (..., metrics).
    """

    metrics: tuple[str, ...]
    quantities: int
    corpus: Callable[[Array], Array]


COUNTED = {
    "bleu": CountedScorer(("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4"), 10, corpus_bleu),
    "meteor": CountedScorer(("METEOR",), 6, corpus_meteor),
}


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


def _values(scores: Scores, ids: Sequence[str], counted: Sequence[str], averaged: Sequence[str]) -> Array:
    """What the corpus scores are made of, for every image: counts, then scores to average."""
    return np.array(
        [
            [
                *(count for name in counted for count in scores.counts[name][key]),
                *(scores.per_image[key][metric] for metric in averaged),
            ]
            for key in ids
        ],
        dtype=float,
    )


def _fixed_weights(unit: str) -> str:
    return "; CIDEr's word weights are kept fixed" if unit == "images" else ""


def _note(count: int, metrics: Sequence[str], left_out: Sequence[str], unit: str) -> str:
    missing = "; ".join(
        f"{column(name).label} is left out: its corpus score cannot be computed from scores of {unit}"
        for name in left_out
    )
    fixed = _fixed_weights(unit) if "CIDEr" in metrics else ""
    return (
        f"checkpoint minus first checkpoint; 95 % percentile bootstrap over the {unit}, paired ({DRAWS:,} draws); "
        f"p by approximate randomisation ({RANDOMISATIONS:,} exchanges), two-sided, shown after Holm's correction over "
        f"all {count} comparisons (p_holm in metrics.json){fixed}" + (f"; {missing}" if missing else "")
    )

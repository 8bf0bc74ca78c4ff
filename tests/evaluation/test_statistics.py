"""Bootstrap intervals, the shuffled-image control, and paired comparisons."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu

from minigpt4.evaluation import statistics
from minigpt4.evaluation.caption import _bleu_counts
from minigpt4.evaluation.statistics import (
    Difference,
    Scores,
    bootstrap_intervals,
    compare,
    corpus_bleu,
    corpus_meteor,
    holm,
    swap_images,
)


def test_intervals_cover_the_mean_and_shrink() -> None:
    generator = np.random.default_rng(0)

    def width(count: int) -> float:
        scores = {str(i): {"CIDEr": float(v)} for i, v in enumerate(generator.normal(1, 1, count))}
        low, high = bootstrap_intervals(scores)["CIDEr"]
        assert low < np.mean([v["CIDEr"] for v in scores.values()]) < high
        return high - low

    # 95 % of a normal mean: 2 x 1.96 / sqrt(n).
    assert width(100) == pytest.approx(2 * 1.96 / 10, rel=0.25)
    assert width(1600) == pytest.approx(2 * 1.96 / 40, rel=0.25)
    assert bootstrap_intervals({"1": {"CIDEr": 1.0}}) == {}
    assert bootstrap_intervals({"1": {"Bleu_4": 1.0}, "2": {"Bleu_4": 1.0}}) == {}


def test_swapped_images() -> None:
    captions = {f"i{n}": f"caption {n}" for n in range(20)}
    swapped = swap_images(captions, seed=3)
    assert sorted(swapped.values()) == sorted(captions.values())
    assert all(swapped[image] != captions[image] for image in captions)
    assert swap_images({"a": "1", "b": "2", "c": "3", "d": "4"}, seed=42) == {"a": "2", "b": "4", "c": "1", "d": "3"}
    assert swapped != swap_images(captions, seed=4)


def scored(cider: np.ndarray, counts: np.ndarray | None = None) -> Scores:
    """Scores of images 0, 1, ... with their CIDEr and their counts of n-grams."""
    corpus = {"CIDEr": float(np.mean(cider))}
    per_image = {str(i): {"CIDEr": float(value)} for i, value in enumerate(cider)}
    if counts is None:
        return Scores(corpus, per_image)
    corpus |= dict(zip(("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4"), corpus_bleu(counts.sum(axis=0)), strict=True))
    return Scores(corpus, per_image, counts={"bleu": {str(i): tuple(row) for i, row in enumerate(counts)}})


@pytest.mark.parametrize("words", [0, 3, 30])
def test_counts_give_the_corpus_bleu_of_the_scorer(words: int) -> None:
    draw = Random(words)

    def sentence() -> str:
        return " ".join(draw.choices(["a", "red", "dog", "runs", "on", "the", "grass"], k=draw.randint(0, words)))

    references = {str(i): [sentence() for _ in range(3)] for i in range(20)}
    results = {key: sentence() for key in references}
    expected, _ = Bleu(4).compute_score(references, {key: [text] for key, text in results.items()}, verbose=0)
    sums = np.array(list(_bleu_counts(references, results).values()), dtype=float).sum(axis=0)
    assert corpus_bleu(sums) == pytest.approx(expected, abs=1e-12)


def test_holm_by_hand() -> None:
    # 4 x 0.01; 3 x 0.02; 2 x 0.03 is less than the one before by rounding only; 1 x 0.5.
    assert holm(np.array([0.5, 0.01, 0.03, 0.02])) == pytest.approx([0.5, 0.04, 0.06, 0.06])
    assert holm(np.array([0.9, 0.8])) == pytest.approx([1.0, 1.0])


def test_p_values_of_few_images_are_those_of_all_exchanges() -> None:
    zeros, gains = np.zeros(6), np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    found = compare({"a": scored(zeros), "b": scored(gains), "c": scored(zeros)})
    assert found is not None and found.baseline == "a"
    better, same = found.differences
    # Only the 2 of 64 exchanges that move all or none of the images give a difference as large.
    assert better.p == pytest.approx(2 / 64, abs=0.005)
    assert (better.checkpoint, better.metric, better.difference) == ("b", "CIDEr", 0.35)
    assert better.p_holm == pytest.approx(2 * better.p)
    assert 0.1 < better.low < 0.35 < better.high < 0.6
    assert (same.difference, same.low, same.high, same.p, same.p_holm) == (0, 0, 0, 1, 1)


def test_intervals_hold_the_true_difference_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RANDOMISATIONS", 9)
    generator = np.random.default_rng(5)
    size, images, sets = 4000, 200, 400
    hard = generator.gamma(2, 0.5, size)
    cider = [hard + generator.gamma(2, 0.3 + 0.05 * better, size) for better in range(2)]
    counts = []
    for better in range(2):
        words = generator.integers(5, 16, size)
        grams = np.stack([words - n for n in range(4)], axis=1)
        matched = generator.binomial(grams, (0.55 + 0.05 * better + 0.1 * np.tanh(hard))[:, None] ** np.arange(1, 5))
        counts.append(np.column_stack([matched, grams, words, generator.integers(7, 14, size)]))
    true = {item.metric: item.difference for item in compared(cider, counts)}
    held = dict.fromkeys(true, 0)
    for number in range(sets):
        drawn = generator.integers(0, size, images)
        for item in compared([values[drawn] for values in cider], [values[drawn] for values in counts], number):
            held[item.metric] += item.low <= true[item.metric] <= item.high
    assert set(held) == {"CIDEr", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4"}
    assert all(0.93 <= count / sets <= 0.97 for count in held.values()), held


def compared(cider: list[np.ndarray], counts: list[np.ndarray], seed: int = 0) -> tuple[Difference, ...]:
    """The differences of two checkpoints."""
    found = compare({str(n): scored(*pair) for n, pair in enumerate(zip(cider, counts, strict=True))}, seed)
    assert found is not None
    return tuple(found.differences)


def test_meteor_is_compared_by_its_counts() -> None:
    draw = np.random.default_rng(0)
    words = draw.integers(4, 12, 30)
    matched = {label: np.minimum(words, draw.integers(0, 6, 30) + more) for label, more in (("a", 0), ("b", 3))}
    scores = {}
    for label, matches in matched.items():
        counts = np.stack([matches, words, matches, words, np.minimum(matches, 2), 2 * matches], axis=1).astype(float)
        per_image = {str(i): {"METEOR": 0.3} for i in range(30)}
        corpus = {"METEOR": float(corpus_meteor(counts.sum(axis=0))[0])}
        scores[label] = Scores(
            corpus, per_image, counts={"meteor": {str(i): tuple(row) for i, row in enumerate(counts)}}
        )
    found = compare(scores)
    assert found is not None and "left out" not in found.note
    (difference,) = found.differences
    assert difference.metric == "METEOR" and "CIDEr" not in found.note
    assert difference.difference == pytest.approx(scores["b"].corpus["METEOR"] - scores["a"].corpus["METEOR"], abs=1e-6)
    assert 0 < difference.low < difference.difference < difference.high and difference.p_holm < 0.01


@pytest.mark.parametrize("counts", [(0, 5, 0, 5, 0, 0), (0, 0, 0, 5, 0, 0)])
def test_meteor_of_a_corpus_without_matches(counts: tuple[float, ...]) -> None:
    assert corpus_meteor(np.array(counts, dtype=float)) == [0]


def test_what_cannot_be_resampled_is_left_out_with_a_note() -> None:
    scores = scored(np.arange(5.0))
    scores.corpus["METEOR"] = 0.3
    found = compare({"a": scores, "b": scores})
    assert found is not None
    assert [item.metric for item in found.differences] == ["CIDEr"]
    assert "METEOR is left out" in found.note and "over all 1 comparisons" in found.note


def test_spice_is_compared_where_it_was_measured() -> None:
    def measured(gain: float) -> Scores:
        spice = np.linspace(0.1, 0.3, 40) + gain
        return Scores({"SPICE": float(spice.mean())}, {str(i): {"SPICE": float(each)} for i, each in enumerate(spice)})

    found = compare({"a": measured(0), "b": measured(0.05)})
    assert found is not None and "left out" not in found.note
    (difference,) = found.differences
    assert (difference.metric, difference.difference) == ("SPICE", pytest.approx(0.05))
    assert difference.low - 1e-9 <= 0.05 <= difference.high + 1e-9 and difference.p_holm < 0.001


def test_nothing_to_compare() -> None:
    assert compare({}) is None
    assert compare({"a": scored(np.arange(5.0))}) is None
    assert compare({"a": scored(np.arange(1.0)), "b": scored(np.arange(1.0))}) is None
    nothing = Scores({"METEOR": 0.3}, {"1": {"METEOR": 0.3}, "2": {"METEOR": 0.3}})
    assert compare({"a": nothing, "b": nothing}) is None


def test_comparisons_in_words() -> None:
    found = compare({"stage 1": scored(np.zeros(40)), "epoch 0": scored(np.linspace(0.1, 0.3, 40))})
    assert found is not None
    first, second = found.footnote().splitlines()
    assert first == "CIDEr minus that of stage 1 (95 % interval, p after Holm's correction):"
    assert second.startswith("epoch 0: +0.200 (0.18") and second.endswith("p < 0.001")

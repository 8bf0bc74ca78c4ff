"""Bootstrap intervals and the shuffled-image control."""

from __future__ import annotations

import numpy as np
import pytest

from minigpt4.evaluation.statistics import bootstrap_intervals, swap_images


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

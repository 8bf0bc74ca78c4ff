from __future__ import annotations

import statistics
from random import Random

import pytest

from minigpt4.datasets.sampler import GroupedOrder, Key, SampleOrder, StepSampler

STEP = 24
STRETCH = 5


def length_of(key: Key) -> int:
    return Random(f"{key}").randrange(20, 110)


def plain_order() -> SampleOrder:
    return SampleOrder(["a", "b"], [50, 30], [3.0, 1.0], seed=42)


def steps(world: int = 1, accumulation: int = 1, start: int = 0, stop: int = 12) -> list[list[Key]]:
    """All samples of each step, from every rank and micro-batch."""
    gathered: list[list[Key]] = [[] for _ in range(stop - start)]
    for rank in range(world):
        order = GroupedOrder(plain_order(), STEP, STRETCH, length_of)
        size = STEP // (world * accumulation)
        sampler = StepSampler(
            order, batch_size=size, accumulation=accumulation, world_size=world, rank=rank,
            start_step=start, stop_step=stop,
        )  # fmt: skip
        for number, keys in enumerate(sampler):
            gathered[number // accumulation].extend(keys)
    return gathered


def spread(step: list[Key]) -> int:
    lengths = list(map(length_of, step))
    return max(lengths) - min(lengths)


def test_a_stretch_has_the_samples_it_would_have_without() -> None:
    order = plain_order()
    for first in (0, STRETCH):
        grouped = [key for step in steps()[first : first + STRETCH] for key in step]
        assert sorted(grouped) == sorted(order.keys(first * STEP, (first + STRETCH) * STEP))


def test_the_samples_of_a_step_are_of_like_length() -> None:
    order = plain_order()
    ungrouped = [order.keys(step * STEP, (step + 1) * STEP) for step in range(10)]
    assert max(map(spread, steps()[:10])) < min(map(spread, ungrouped)) / 2


def test_lengths_do_not_rise_with_the_steps() -> None:
    means = [statistics.mean(map(length_of, step)) for step in steps(stop=10)]
    assert means[:STRETCH] != sorted(means[:STRETCH]) or means[STRETCH:] != sorted(means[STRETCH:])
    ranks = [[sorted(part).index(mean) for mean in part] for part in (means[:STRETCH], means[STRETCH:])]
    assert ranks[0] != ranks[1]


@pytest.mark.parametrize(("world", "accumulation"), [(2, 1), (4, 1), (2, 3)])
def test_each_step_has_the_same_samples_on_any_number_of_processes(world: int, accumulation: int) -> None:
    assert steps(world, accumulation) == steps()


@pytest.mark.parametrize("start", [1, 5, 7])
def test_a_resumed_run_goes_on_where_it_was(start: int) -> None:
    assert steps(start=start) == steps()[start:]


def test_a_longer_run_begins_alike() -> None:
    assert steps(stop=7) == steps(stop=20)[:7]

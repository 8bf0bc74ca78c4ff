from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from minigpt4.datasets.sampler import Key, SampleOrder, ShardShuffle, StepSampler

GLOBAL = 24


def order_of(sizes: tuple[int, ...] = (50,), ratios: tuple[float, ...] = (1.0,), seed: int = 42) -> SampleOrder:
    return SampleOrder([f"data{number}" for number in range(len(sizes))], sizes, ratios, seed)


def steps(world: int, accumulation: int, start: int = 0, stop: int = 20, **kind) -> list[list[Key]]:
    """All samples of each step, from every rank and micro-batch."""
    batch = GLOBAL // (world * accumulation)
    gathered: list[list[Key]] = [[] for _ in range(stop - start)]
    for rank in range(world):
        sampler = StepSampler(
            order_of(**kind), batch_size=batch, accumulation=accumulation, world_size=world, rank=rank,
            start_step=start, stop_step=stop,
        )  # fmt: skip
        batches = list(sampler)
        assert len(batches) == len(sampler) == (stop - start) * accumulation
        assert all(len(keys) == batch for keys in batches)
        for number, keys in enumerate(batches):
            gathered[number // accumulation].extend(keys)
    return gathered


TWO = {"sizes": (50, 30), "ratios": (3.0, 1.0)}


@pytest.mark.parametrize("kind", [{}, TWO], ids=["one dataset", "two datasets"])
class TestProcesses:
    @pytest.mark.parametrize(("world", "accumulation"), [(1, 2), (2, 1), (2, 3), (4, 1), (4, 2)])
    def test_each_step_has_the_same_samples_on_any_number(self, kind, world: int, accumulation: int) -> None:
        alone = steps(1, 1, **kind)
        shared = steps(world, accumulation, **kind)
        assert shared == alone

    @pytest.mark.parametrize("start", [1, 7, 19])
    def test_a_resumed_run_goes_on_where_it_was(self, kind, start: int) -> None:
        assert steps(2, 2, start=start, **kind) == steps(2, 2, **kind)[start:]

    def test_iterating_again_gives_the_same(self, kind) -> None:
        sampler = StepSampler(order_of(**kind), batch_size=4, stop_step=9)
        assert list(sampler) == list(sampler)


class TestPasses:
    def test_a_pass_takes_every_record_once(self) -> None:
        keys = order_of().keys(0, 150)
        for draw in range(3):
            part = keys[50 * draw : 50 * (draw + 1)]
            assert {key.draw for key in part} == {draw}
            assert sorted(key.record for key in part) == list(range(50))

    def test_passes_seeds_and_names_differ_in_order(self) -> None:
        def records(order: SampleOrder, start: int) -> list[int]:
            return [key.record for key in order.keys(start, start + 50)]

        first = records(order_of(), 0)
        assert first != sorted(first)
        assert first != records(order_of(), 50)
        assert first != records(order_of(seed=43), 0)
        assert first != records(SampleOrder(["other"], [50], [1.0], 42), 0)
        assert first == records(order_of(), 0)

    def test_the_order_is_pinned(self) -> None:
        """A change here would change every run's samples, and what a resumed run sees."""
        assert [key.record for key in order_of(sizes=(10,)).keys(0, 10)] == [2, 8, 6, 9, 7, 3, 0, 4, 1, 5]
        mixed = order_of(sizes=(10, 10), ratios=(1.0, 1.0))
        assert mixed.datasets(0, 16).tolist() == [0, 0, 1, 0, 1, 1, 0, 1, 0, 1, 1, 0, 1, 0, 0, 1]

    def test_each_dataset_of_a_mixture_is_gone_through(self) -> None:
        keys = order_of(**TWO).keys(0, 400)
        for dataset, size in enumerate((50, 30)):
            own = [key for key in keys if key.dataset == dataset]
            for draw in range(len(own) // size):
                part = own[size * draw : size * (draw + 1)]
                assert sorted(key.record for key in part) == list(range(size))
                assert {key.draw for key in part} == {draw}

    def test_a_dataset_smaller_than_a_step(self) -> None:
        keys = order_of(sizes=(3,)).keys(0, 9)
        assert Counter(key.record for key in keys) == {0: 3, 1: 3, 2: 3}


class TestRatio:
    @pytest.mark.parametrize("ratios", [(115.0, 14.0), (1.0, 1.0), (1.0, 2.0, 5.0), (1000.0, 1.0), (1.0, 1e-20)])
    @pytest.mark.parametrize("start", [0, 123_456])
    def test_any_ten_thousand_positions_keep_it(self, ratios: tuple[float, ...], start: int) -> None:
        order = order_of(sizes=(100,) * len(ratios), ratios=ratios)
        counts = np.bincount(order.datasets(start, start + 10_000), minlength=len(ratios)) / 10_000
        assert np.abs(counts - np.array(ratios) / sum(ratios)).max() < 0.01

    def test_the_mixture_is_not_periodic(self) -> None:
        choices = order_of(sizes=(10, 10), ratios=(1.0, 1.0)).datasets(0, 1000)
        for period in (1, 2, 3, 4, 8, 16):
            assert (choices[period:] != choices[:-period]).any()

    @pytest.mark.parametrize("ratios", [(1.0,), (3.0, 1.0), (1.0, 2.0, 5.0), (1.0, 1e-20)])
    def test_counting_agrees_with_drawing(self, ratios: tuple[float, ...]) -> None:
        order = order_of(sizes=(100,) * len(ratios), ratios=ratios)
        drawn = order.datasets(0, 1000)
        for position in (0, 1, 2, 64, 999, 1000):
            expected = np.bincount(drawn[:position], minlength=len(ratios))
            assert order.drawn_before(position).tolist() == expected.tolist()

    def test_counting_far_along_agrees_with_drawing(self) -> None:
        order = order_of(sizes=(100, 100), ratios=(115.0, 14.0))
        far = 1_280_000_000  # 20,000 steps of 64 samples on a thousand processes
        drawn = order.drawn_before(far + 5000) - order.drawn_before(far)
        assert drawn.tolist() == np.bincount(order.datasets(far, far + 5000), minlength=2).tolist()
        assert order.drawn_before(far).sum() == far


def counted_share(order: SampleOrder, share: int, world: int, rank: int, steps: range) -> list[list[Key]]:
    """One process's samples of each step, found by going through everybody's from position 0."""
    step_size = share * world
    counts = np.bincount(order.datasets(0, steps.start * step_size), minlength=len(order.sizes))
    shares = []
    for step in steps:
        keys = []
        for dataset in order.datasets(step * step_size, (step + 1) * step_size).tolist():
            draw, place = divmod(int(counts[dataset]), order.sizes[dataset])
            keys.append(Key(dataset, order.orders[dataset].record(draw, place), draw))
            counts[dataset] += 1
        shares.append(keys[rank * share : (rank + 1) * share])
    return shares


class TestShare:
    @pytest.mark.parametrize(("world", "rank"), [(1, 0), (3, 0), (3, 1), (3, 2), (1000, 0), (1000, 499), (1000, 999)])
    def test_it_is_what_counting_through_everybodys_samples_finds(self, world: int, rank: int) -> None:
        counts = [[50] * 60, [30] * 20]

        def order() -> SampleOrder:
            orders = [ShardShuffle(f"shares-{number}", count, 16) for number, count in enumerate(counts)]
            return SampleOrder(["a", "b"], [sum(count) for count in counts], [115.0, 14.0], 42, orders)

        steps = range(3, 5)
        sampler = StepSampler(
            order(), batch_size=16, accumulation=2, world_size=world, rank=rank, start_step=3, stop_step=5
        )
        halves = list(sampler)
        found = [first + second for first, second in zip(halves[::2], halves[1::2], strict=True)]
        assert found == counted_share(order(), 32, world, rank, steps)

    def test_a_process_lists_its_own_samples_only(self) -> None:
        asked: list[int] = []

        class Watched(SampleOrder):
            def keys(self, start: int, stop: int) -> list[Key]:
                asked.append(stop - start)
                return super().keys(start, stop)

        order = Watched(["a"], [50], [1.0], 42)
        assert len(list(StepSampler(order, batch_size=8, world_size=1000, rank=7, stop_step=3))) == 3
        assert asked == [8] * 3

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from random import Random

import numpy as np
import pytest

from minigpt4.datasets import sampler as sampler_module
from minigpt4.datasets.sampler import FullShuffle, GroupedOrder, SampleKey, SampleOrder, ShardShuffle, StepSampler

GLOBAL = 24


def order_of(sizes: tuple[int, ...] = (50,), ratios: tuple[float, ...] = (1.0,), seed: int = 42) -> SampleOrder:
    return SampleOrder([f"data{number}" for number in range(len(sizes))], sizes, ratios, seed)


def steps(world: int, accumulation: int, start: int = 0, stop: int = 20, **kind) -> list[list[SampleKey]]:
    """All samples of each step, from every rank and micro-batch."""
    batch = GLOBAL // (world * accumulation)
    ranks = []
    for rank in range(world):
        sampler = StepSampler(
            order_of(**kind), batch_size=batch, accumulation=accumulation, world_size=world, rank=rank,
            start_step=start, stop_step=stop,
        )  # fmt: skip
        batches = list(sampler)
        assert len(batches) == len(sampler) == (stop - start) * accumulation
        assert all(len(keys) == batch for keys in batches)
        ranks.append(batches)
    return joined(ranks, accumulation)


def joined(ranks: list[list[list[SampleKey]]], accumulation: int) -> list[list[SampleKey]]:
    """The samples of each step in the order of its micro-batches, from those of each rank."""
    slots = list(zip(*ranks, strict=True))
    return [
        [key for slot in slots[first : first + accumulation] for keys in slot for key in keys]
        for first in range(0, len(slots), accumulation)
    ]


TWO = {"sizes": (50, 30), "ratios": (3.0, 1.0)}


@pytest.mark.parametrize("kind", [{}, TWO], ids=["one dataset", "two datasets"])
class TestProcesses:
    @pytest.mark.parametrize(("world", "accumulation"), [(1, 2), (2, 1), (2, 3), (4, 1), (4, 2)])
    def test_each_step_has_the_same_samples_on_any_number(self, kind, world: int, accumulation: int) -> None:
        alone = steps(1, 1, **kind)
        shared = steps(world, accumulation, **kind)
        assert shared == alone

    @pytest.mark.parametrize("start", [1, 7, 19])
    def test_a_resumed_run_continues(self, kind, start: int) -> None:
        assert steps(2, 2, start=start, **kind) == steps(2, 2, **kind)[start:]

    def test_iterating_again_gives_the_same(self, kind) -> None:
        sampler = StepSampler(order_of(**kind), batch_size=4, stop_step=9)
        assert list(sampler) == list(sampler)


class TestEpochs:
    def test_an_epoch_draws_every_record_once(self) -> None:
        keys = order_of().keys(0, 150)
        for epoch in range(3):
            part = keys[50 * epoch : 50 * (epoch + 1)]
            assert {key.epoch for key in part} == {epoch}
            assert sorted(key.record for key in part) == list(range(50))

    def test_epochs_seeds_and_names_differ_in_order(self) -> None:
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

    def test_each_dataset_of_a_mixture_is_used_completely(self) -> None:
        keys = order_of(**TWO).keys(0, 400)
        for dataset, size in enumerate((50, 30)):
            own = [key for key in keys if key.dataset == dataset]
            for epoch in range(len(own) // size):
                part = own[size * epoch : size * (epoch + 1)]
                assert sorted(key.record for key in part) == list(range(size))
                assert {key.epoch for key in part} == {epoch}

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
    @pytest.mark.parametrize("positions", [(0, 1, 2, 64, 999, 1000), (999, 64, 64, 1000, 3, 0)], ids=["up", "down"])
    def test_counting_agrees_with_listing(
        self, ratios: tuple[float, ...], positions: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sampler_module, "COUNT_BLOCK", 50)
        order = order_of(sizes=(100,) * len(ratios), ratios=ratios)
        drawn = order.datasets(0, 1000)
        for position in positions:
            expected = np.bincount(drawn[:position], minlength=len(ratios))
            assert order.drawn_before(position).tolist() == expected.tolist()

    def test_counting_far_along_agrees_with_exact_arithmetic(self) -> None:
        order = order_of(sizes=(100, 100), ratios=(1.0, 1.0))
        position, offset, bound = 300_000, int(order._offset), int(order._bounds[0])
        points = (int(sampler_module.GOLDEN) * i + offset for i in range(position))
        expected = sum(point % 2**64 < bound for point in points)
        assert order.drawn_before(position).tolist() == [expected, position - expected]


def counted_share(
    order: SampleOrder, batch: int, slots: int, world: int, rank: int, steps: range
) -> list[list[SampleKey]]:
    """The micro-batches of one rank, found by listing those of all ranks from position 0."""
    step_size = batch * slots * world
    counts = np.bincount(order.datasets(0, steps.start * step_size), minlength=len(order.sizes))
    shares = []
    for step in steps:
        keys = []
        for dataset in order.datasets(step * step_size, (step + 1) * step_size).tolist():
            epoch, place = divmod(int(counts[dataset]), order.sizes[dataset])
            keys.append(SampleKey(dataset, order.orders[dataset].record(epoch, place), epoch))
            counts[dataset] += 1
        shares += [keys[first : first + batch] for first in range(rank * batch, step_size, world * batch)]
    return shares


class TestShare:
    @pytest.mark.parametrize(("world", "rank"), [(1, 0), (3, 0), (3, 1), (3, 2), (1000, 0), (1000, 499), (1000, 999)])
    def test_it_is_part_of_the_samples_of_all_ranks(self, world: int, rank: int) -> None:
        counts = [[50] * 60, [30] * 20]

        def order() -> SampleOrder:
            orders = [ShardShuffle(f"shares-{number}", count, 16) for number, count in enumerate(counts)]
            return SampleOrder(["a", "b"], [sum(count) for count in counts], [115.0, 14.0], 42, orders)

        steps = range(3, 5)
        sampler = StepSampler(
            order(), batch_size=16, accumulation=2, world_size=world, rank=rank, start_step=3, stop_step=5
        )
        assert list(sampler) == counted_share(order(), 16, 2, world, rank, steps)

    def test_only_this_ranks_samples_are_listed(self) -> None:
        asked: list[int] = []

        class Watched(SampleOrder):
            def keys(self, start: int, stop: int) -> list[SampleKey]:
                asked.append(stop - start)
                return super().keys(start, stop)

        order = Watched(["a"], [50], [1.0], 42)
        assert len(list(StepSampler(order, batch_size=8, world_size=1000, rank=7, stop_step=3))) == 3
        assert asked == [8] * 3


COUNTS = (7, 1, 12, 5, 9, 3)
TOTAL = sum(COUNTS)


def records_in(epoch: int = 0, name: str = "a", counts: Sequence[int] = COUNTS, window: int = 2) -> list[int]:
    order = ShardShuffle(name, counts, window)
    return [order.record(epoch, place) for place in range(sum(counts))]


def shard_of(record: int) -> int:
    for shard, count in enumerate(COUNTS):
        if record < count:
            return shard
        record -= count
    raise AssertionError(record)


class TestShardShuffle:
    @pytest.mark.parametrize("window", [1, 2, 3, 4, 6, 100])
    @pytest.mark.parametrize("epoch", [0, 1, 7])
    def test_each_record_comes_once_in_each_epoch(self, window: int, epoch: int) -> None:
        assert sorted(records_in(epoch, window=window)) == list(range(TOTAL))

    def test_it_depends_on_epoch_name_and_window_only(self) -> None:
        assert records_in() == records_in()
        assert (
            len({tuple(order) for order in (records_in(), records_in(1), records_in(name="b"), records_in(window=3))})
            == 4
        )
        order = ShardShuffle("a", COUNTS, 2)
        jumps = [(1, 30), (0, 3), (5, 0), (0, 36), (1, 2)]
        assert [order.record(*jump) for jump in jumps] == [records_in(epoch)[place] for epoch, place in jumps]

    def test_only_a_group_of_shards_is_read_at_a_time(self) -> None:
        for epoch in range(5):
            shards = [shard_of(record) for record in records_in(epoch)]
            groups: list[set[int]] = []
            place = 0
            while place < TOTAL:
                group = set()
                for shard in shards[place:]:
                    if shard not in group and len(group) == 2:
                        break
                    group.add(shard)
                size = sum(COUNTS[shard] for shard in group)
                assert set(shards[place : place + size]) == group
                groups.append(group)
                place += size
            assert sorted(shard for group in groups for shard in group) == list(range(6))

    def test_shards_and_samples_are_both_shuffled(self) -> None:
        first = [shard_of(records_in(epoch, window=1)[0]) for epoch in range(20)]
        assert len(set(first)) > 3
        twelve = [[r for r in records_in(epoch, window=1) if shard_of(r) == 2] for epoch in range(3)]
        assert all(order != sorted(order) for order in twelve) and twelve[0] != twelve[1]

    def test_the_order_of_shards_is_pinned(self) -> None:
        """A change here would change every run on shards, and what a resumed one sees."""
        assert records_in(counts=(3, 3, 3, 3)) == [10, 6, 11, 8, 7, 9, 5, 2, 0, 1, 3, 4]

    def test_few_permutations_are_kept(self) -> None:
        shards, full = ShardShuffle("a", COUNTS, 1), FullShuffle("a", TOTAL)
        for epoch in range(9):
            for place in range(TOTAL):
                shards.record(epoch, place)
                full.record(epoch, place)
        assert max(len(shards._groups), len(shards._epochs), len(full._epochs)) <= 2


STEP = 24
GROUP = 5


def length_of(key: SampleKey) -> int:
    return Random(f"{key}").randrange(20, 110)


def plain_order() -> SampleOrder:
    return SampleOrder(["a", "b"], [50, 30], [3.0, 1.0], seed=42)


def grouped_steps(world: int = 1, accumulation: int = 1, start: int = 0, stop: int = 12) -> list[list[SampleKey]]:
    """All samples of each step, from every rank and micro-batch."""
    ranks = []
    for rank in range(world):
        order = GroupedOrder(plain_order(), STEP, GROUP, length_of)
        size = STEP // (world * accumulation)
        sampler = StepSampler(
            order, batch_size=size, accumulation=accumulation, world_size=world, rank=rank,
            start_step=start, stop_step=stop,
        )  # fmt: skip
        ranks.append(list(sampler))
    return joined(ranks, accumulation)


def spread(step: list[SampleKey]) -> int:
    lengths = list(map(length_of, step))
    return max(lengths) - min(lengths)


class TestGroupedOrder:
    def test_a_group_has_the_samples_it_would_have_without(self) -> None:
        order = plain_order()
        for first in (0, GROUP):
            grouped = [key for step in grouped_steps()[first : first + GROUP] for key in step]
            assert sorted(grouped) == sorted(order.keys(first * STEP, (first + GROUP) * STEP))

    def test_the_samples_of_a_step_are_of_like_length(self) -> None:
        order = plain_order()
        ungrouped = [order.keys(step * STEP, (step + 1) * STEP) for step in range(10)]
        assert max(map(spread, grouped_steps()[:10])) < min(map(spread, ungrouped)) / 2

    def test_lengths_do_not_rise_with_the_steps(self) -> None:
        means = [statistics.mean(map(length_of, step)) for step in grouped_steps(stop=10)]
        assert means[:GROUP] != sorted(means[:GROUP]) or means[GROUP:] != sorted(means[GROUP:])
        ranks = [[sorted(part).index(mean) for mean in part] for part in (means[:GROUP], means[GROUP:])]
        assert ranks[0] != ranks[1]

    @pytest.mark.parametrize(("world", "accumulation"), [(2, 1), (4, 1), (2, 3)])
    def test_each_step_has_the_same_samples_on_any_number_of_processes(self, world: int, accumulation: int) -> None:
        assert grouped_steps(world, accumulation) == grouped_steps()

    @pytest.mark.parametrize("start", [1, 5, 7])
    def test_a_resumed_run_continues(self, start: int) -> None:
        assert grouped_steps(start=start) == grouped_steps()[start:]

    def test_a_longer_run_begins_alike(self) -> None:
        assert grouped_steps(stop=7) == grouped_steps(stop=20)[:7]

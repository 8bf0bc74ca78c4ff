from __future__ import annotations

from collections.abc import Sequence

import pytest

from minigpt4.datasets.sampler import FullShuffle, ShardShuffle

COUNTS = (7, 1, 12, 5, 9, 3)
TOTAL = sum(COUNTS)


def taken(draw: int = 0, name: str = "a", counts: Sequence[int] = COUNTS, window: int = 2) -> list[int]:
    order = ShardShuffle(name, counts, window)
    return [order.record(draw, place) for place in range(sum(counts))]


def shard_of(record: int) -> int:
    for shard, count in enumerate(COUNTS):
        if record < count:
            return shard
        record -= count
    raise AssertionError(record)


@pytest.mark.parametrize("window", [1, 2, 3, 4, 6, 100])
@pytest.mark.parametrize("draw", [0, 1, 7])
def test_each_record_comes_once_in_each_pass(window: int, draw: int) -> None:
    assert sorted(taken(draw, window=window)) == list(range(TOTAL))


def test_passes_names_and_windows_differ_and_nothing_else_matters() -> None:
    assert taken() == taken()
    assert len({tuple(order) for order in (taken(), taken(1), taken(name="b"), taken(window=3))}) == 4
    order = ShardShuffle("a", COUNTS, 2)
    jumps = [(1, 30), (0, 3), (5, 0), (0, 36), (1, 2)]
    assert [order.record(*jump) for jump in jumps] == [taken(draw)[place] for draw, place in jumps]


def test_only_a_group_of_shards_is_read_at_a_time() -> None:
    for draw in range(5):
        shards = [shard_of(record) for record in taken(draw)]
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


def test_shards_and_samples_are_both_shuffled() -> None:
    first = [shard_of(taken(draw, window=1)[0]) for draw in range(20)]
    assert len(set(first)) > 3
    twelve = [[r for r in taken(draw, window=1) if shard_of(r) == 2] for draw in range(3)]
    assert all(order != sorted(order) for order in twelve) and twelve[0] != twelve[1]


def test_the_order_is_pinned() -> None:
    """A change here would change every run on shards, and what a resumed one sees."""
    assert taken(counts=(3, 3, 3, 3)) == [10, 6, 11, 8, 7, 9, 5, 2, 0, 1, 3, 4]


def test_few_permutations_are_kept() -> None:
    shards, full = ShardShuffle("a", COUNTS, 1), FullShuffle("a", TOTAL)
    for draw in range(9):
        for place in range(TOTAL):
            shards.record(draw, place)
            full.record(draw, place)
    assert max(len(shards._groups), len(shards._passes), len(full._passes)) <= 2

"""In what order one pass through a dataset takes its records: a pure function of seed, name, pass and place."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

KEPT = 2
"""Permutations remembered by each order; a step touches two where one ends."""


def digest(name: str) -> bytes:
    """32 bytes that stand for a name."""
    return hashlib.sha256(name.encode()).digest()


def permutation(name: str, size: int) -> np.ndarray:
    """The permutation of [0, size) that goes by this name."""
    # RandomState, because numpy promises that its streams never change.
    return np.random.RandomState(np.frombuffer(digest(name), dtype=np.uint32)).permutation(size)


class Order(Protocol):
    """An order for each pass; every record comes once."""

    def record(self, draw: int, place: int) -> int:
        """The record at `place` of pass number `draw`."""
        ...


class FullShuffle:
    """Any record may come anywhere: for records that can be read as quickly in any order.

    Args:
        name: Names the generators, with the number of the pass.
        size: Records.
    """

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self._passes: dict[int, np.ndarray] = {}

    def record(self, draw: int, place: int) -> int:
        """The record at `place` of pass number `draw`."""
        if draw not in self._passes:
            _forget(self._passes)
            self._passes[draw] = permutation(f"{self.name}-{draw}", self.size)
        return int(self._passes[draw][place])


class ShardShuffle:
    """The shards are shuffled, then the records within each group of `window` shards that follow each other.

    A hundred million records need no permutation of their own length this way, and only `window` files are read at a
    time, so that disks and page caches see them nearly one after the other.

    Args:
        name: Names the generators, with the numbers of pass and group.
        counts: Records of each shard; record numbers go through the shards as they are given.
        window: Shards a group.
    """

    def __init__(self, name: str, counts: Sequence[int] | np.ndarray, window: int) -> None:
        self.name = name
        self.counts = np.asarray(counts, dtype=np.int64)
        self.window = window
        self._starts = np.concatenate([[0], np.cumsum(self.counts)])
        self._passes: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._groups: dict[tuple[int, int], np.ndarray] = {}

    def record(self, draw: int, place: int) -> int:
        """The record at `place` of pass number `draw`."""
        shards, group_starts = self._pass(draw)
        group = int(np.searchsorted(group_starts, place, side="right")) - 1
        if (draw, group) not in self._groups:
            _forget(self._groups)
            self._groups[draw, group] = self._shuffled(draw, group, shards)
        return int(self._groups[draw, group][place - group_starts[group]])

    def _pass(self, draw: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of the shards, and the place that each of their groups begins at."""
        if draw not in self._passes:
            _forget(self._passes)
            shards = permutation(f"{self.name}-{draw}-shards", len(self.counts))
            ends = np.cumsum(self.counts[shards])
            starts = np.concatenate([[0], ends[self.window - 1 :: self.window]])
            self._passes[draw] = shards, starts
        return self._passes[draw]

    def _shuffled(self, draw: int, group: int, shards: np.ndarray) -> np.ndarray:
        chosen = shards[group * self.window : (group + 1) * self.window]
        records = np.concatenate([np.arange(self._starts[s], self._starts[s + 1]) for s in chosen])
        return records[permutation(f"{self.name}-{draw}-group-{group}", len(records))]


def _forget(kept: dict) -> None:
    """Make room for one more, the earliest leaving first."""
    while len(kept) >= KEPT:
        del kept[min(kept)]

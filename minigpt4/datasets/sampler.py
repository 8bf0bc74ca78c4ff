"""Which sample stands at which position of training: a pure function of the seed and the position.

The stream has no end and knows nothing of processes, workers or epochs. Optimizer step s consists of the positions
[s * G, (s + 1) * G) with G = batch_size * world_size * accumulation, so any number of processes with the same G trains
on the same samples in each step, and a resumed run continues where it was."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import NamedTuple, Protocol

import numpy as np
from torch.utils.data import Sampler

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


def floor_sum(count: int, modulus: int, factor: int, offset: int) -> int:
    """The sum of (factor * i + offset) // modulus over i in [0, count), in O(log modulus) divisions.

    The lattice points under a line, counted as in Euclid's algorithm: whole rows are taken off, then the axes change
    places (Graham, Knuth and Patashnik, Concrete Mathematics, section 3.5).

    Args:
        count: Terms.
        modulus: Above 0.
        factor: Not negative.
        offset: Not negative.
    """
    total = 0
    while True:
        total += count * (count - 1) // 2 * (factor // modulus) + count * (offset // modulus)
        factor, offset = factor % modulus, offset % modulus
        rows, rest = divmod(factor * count + offset, modulus)
        if rows == 0:
            return total
        count, offset, modulus, factor = rows, rest, factor, modulus


def below(bound: int, count: int, modulus: int, factor: int, offset: int) -> int:
    """How many i in [0, count) have (factor * i + offset) % modulus < bound.

    Args:
        bound: From 0 to `modulus`.
        count: As for `floor_sum`, like the others.
    """
    # A point at or above the bound steps over a multiple of the modulus when `modulus - bound` is added to it.
    at_or_above = floor_sum(count, modulus, factor, offset + modulus - bound) - floor_sum(
        count, modulus, factor, offset
    )
    return count - at_or_above


CIRCLE = 1 << 64
GOLDEN = 0x9E3779B97F4A7C15
"""2^64 / golden ratio: multiples of it fill [0, 2^64) as evenly as any sequence can."""


class Key(NamedTuple):
    """Which sample stands at a position.

    Attributes:
        dataset: Index of the dataset.
        record: Index of the record in it.
        draw: Number of the pass through that dataset.
    """

    dataset: int
    record: int
    draw: int


class SampleOrder:
    """Position in the stream -> sample, for one dataset or several mixed by ratio.

    Each dataset is gone through completely, in an order of its own for each pass, before it begins again.

    Args:
        names: Of the datasets; they name the generators, so that adding a dataset keeps the others' orders.
        sizes: Records of each.
        ratios: Weight of each; the sum need not be one.
        seed: Of the run.
        orders: How each dataset is gone through; None: in any order.
    """

    def __init__(
        self,
        names: Sequence[str],
        sizes: Sequence[int],
        ratios: Sequence[float],
        seed: int,
        orders: Sequence[Order] | None = None,
    ) -> None:
        self.names = names
        self.sizes = sizes
        self.seed = seed
        self.orders = orders or [FullShuffle(f"{seed}-{n}", size) for n, size in zip(names, sizes, strict=True)]
        bounds = np.cumsum(ratios)[:-1] / np.sum(ratios)
        self._bounds = np.minimum(bounds * 2.0**64, 2.0**64 - 2048).astype(np.uint64)
        self._offset = np.uint64(int.from_bytes(digest(f"{seed}-mixture")[:8], "little"))

    def datasets(self, start: int, stop: int) -> np.ndarray:
        """The dataset at each position of [start, stop): an evenly spread sequence, so any stretch keeps the ratio."""
        positions = np.arange(start, stop, dtype=np.uint64)
        points = positions * np.uint64(GOLDEN) + self._offset
        return np.searchsorted(self._bounds, points, side="right")

    def drawn_before(self, position: int) -> np.ndarray:
        """Samples of each dataset at positions below `position`; as quick for the billionth as for the first."""
        offset = int(self._offset)
        passed = [below(bound, position, CIRCLE, GOLDEN, offset) for bound in self._bounds.tolist()]
        return np.diff([0, *passed, position])

    def keys(self, start: int, stop: int) -> list[Key]:
        """The samples at [start, stop)."""
        counts = self.drawn_before(start).tolist()
        keys = []
        for dataset in self.datasets(start, stop).tolist():
            draw, place = divmod(counts[dataset], self.sizes[dataset])
            keys.append(Key(dataset, self.orders[dataset].record(draw, place), draw))
            counts[dataset] += 1
        return keys


class Stream(Protocol):
    """Where a sampler's samples come from; `SampleOrder`, or one that changes it."""

    def keys(self, start: int, stop: int) -> list[Key]:
        """The samples at [start, stop), which are a part of one step."""
        ...


class StepSampler(Sampler[list[Key]]):
    """One process's micro-batches of the steps [start_step, stop_step).

    Args:
        order: The stream.
        batch_size: Samples a process and micro-batch.
        accumulation: Micro-batches an optimizer step.
        world_size: Processes.
        rank: Of this process.
        start_step: First optimizer step.
        stop_step: Step behind the last.
    """

    def __init__(
        self,
        order: Stream,
        *,
        batch_size: int,
        accumulation: int = 1,
        world_size: int = 1,
        rank: int = 0,
        start_step: int = 0,
        stop_step: int,
    ) -> None:
        self.order = order
        self.batch_size = batch_size
        self.accumulation = accumulation
        self.world_size = world_size
        self.rank = rank
        self.start_step = start_step
        self.stop_step = stop_step

    def __len__(self) -> int:
        return max(0, self.stop_step - self.start_step) * self.accumulation

    def __iter__(self) -> Iterator[list[Key]]:
        # A process lists its own samples only: with a thousand of them, the whole step would be 64,000 a process.
        share = self.batch_size * self.accumulation
        for step in range(self.start_step, self.stop_step):
            mine = (step * self.world_size + self.rank) * share
            for first in range(mine, mine + share, self.batch_size):
                yield self.order.keys(first, first + self.batch_size)


class GroupedOrder:
    """The samples of a `SampleOrder`, sorted by length within stretches of several steps.

    The steps of a stretch keep their samples together and come in a drawn order, so that lengths do not rise and fall
    with the steps. Like the order it changes, this is a pure function of the seed and the position: it is the same
    whatever the processes, and after a resume.

    Args:
        order: The stream.
        step_size: Samples an optimizer step, of all processes.
        steps: Optimizer steps of a stretch.
        length_of: Estimates a sample's length, in any unit.
    """

    def __init__(self, order: SampleOrder, step_size: int, steps: int, length_of: Callable[[Key], int]) -> None:
        self.order = order
        self.step_size = step_size
        self.steps = steps
        self.length_of = length_of
        self._stretch: tuple[int, list[list[Key]]] | None = None

    def keys(self, start: int, stop: int) -> list[Key]:
        """The samples at [start, stop), which must be a part of one step."""
        step, first = divmod(start, self.step_size)
        last = first + stop - start
        assert first <= last <= self.step_size, "asked for samples of several steps"
        number, within = divmod(step, self.steps)
        if self._stretch is None or self._stretch[0] != number:
            self._stretch = number, self._grouped(number)
        return self._stretch[1][within][first:last]

    def _grouped(self, number: int) -> list[list[Key]]:
        """The steps of a stretch."""
        length = self.steps * self.step_size
        keys = self.order.keys(number * length, (number + 1) * length)
        keys.sort(key=self.length_of)
        steps = [keys[start : start + self.step_size] for start in range(0, length, self.step_size)]
        Random(f"{self.order.seed}-lengths-{number}").shuffle(steps)
        return steps

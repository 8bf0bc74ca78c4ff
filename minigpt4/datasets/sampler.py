"""Which sample stands at which position of training: a pure function of the seed and the position.

The stream has no end and does not depend on ranks or workers. Optimizer step s consists of the positions
[s * G, (s + 1) * G) with G = batch_size * world_size * accumulation, so any number of ranks with the same G trains on
the same samples in each step, and a resumed run continues where it stopped. Within a step the micro-batches are
numbered in the order of the stream, so that they are the same on any number of ranks that shares them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch.utils.data import Sampler

KEPT_PERMUTATIONS = 2
"""Permutations that each order remembers; a step at the end of an epoch needs two."""
COUNT_BLOCK = 1 << 16
"""Positions counted at a time by `SampleOrder.drawn_before`: few enough for the processor's cache."""
GOLDEN = 0x9E3779B97F4A7C15
"""2^64 / golden ratio: multiples of it modulo 2^64 fill [0, 2^64) as evenly as any sequence can."""


class SampleKey(NamedTuple):
    """A sample: what the sampler gives the mixture of datasets.

    Attributes:
        dataset: index of the dataset.
        record: index of the record in it.
        epoch: number of the pass through that dataset, from 0.
    """

    dataset: int
    record: int
    epoch: int


class Order(Protocol):
    """A permutation of a dataset's records for each epoch."""

    def record(self, epoch: int, place: int) -> int:
        """The record at `place` of an epoch."""
        ...


class FullShuffle:
    """Any record may come anywhere: for records that are equally fast to read in any order.

    Args:
        name: names the random generators, together with the epoch.
        size: number of records.
    """

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self._epochs: dict[int, np.ndarray] = {}

    def record(self, epoch: int, place: int) -> int:
        """The record at `place` of an epoch."""
        if epoch not in self._epochs:
            _make_room(self._epochs)
            self._epochs[epoch] = _permutation(f"{self.name}-{epoch}", self.size)
        return int(self._epochs[epoch][place])


class ShardShuffle:
    """Shuffles the shards, then the records within each group of `window` consecutive shards.

    A hundred million records need no permutation of their own length this way, and only `window` files are read at a
    time, so that disks and page caches are used almost sequentially.

    Args:
        name: names the random generators, together with epoch and group.
        counts: records of each shard; record numbers follow the order of the shards given here.
        window: shards of a group.
    """

    def __init__(self, name: str, counts: Sequence[int] | np.ndarray, window: int) -> None:
        self.name = name
        self.counts = np.asarray(counts, dtype=np.int64)
        self.window = window
        self._starts = np.concatenate([[0], np.cumsum(self.counts)])
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._groups: dict[tuple[int, int], np.ndarray] = {}

    def record(self, epoch: int, place: int) -> int:
        """The record at `place` of an epoch."""
        shards, group_starts = self._shards_and_groups(epoch)
        group = int(np.searchsorted(group_starts, place, side="right")) - 1
        if (epoch, group) not in self._groups:
            _make_room(self._groups)
            chosen = shards[group * self.window : (group + 1) * self.window]
            records = np.concatenate([np.arange(self._starts[s], self._starts[s + 1]) for s in chosen])
            self._groups[epoch, group] = records[_permutation(f"{self.name}-{epoch}-group-{group}", len(records))]
        return int(self._groups[epoch, group][place - group_starts[group]])

    def _shards_and_groups(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of the shards, and the place at which each group of them starts."""
        if epoch not in self._epochs:
            _make_room(self._epochs)
            shards = _permutation(f"{self.name}-{epoch}-shards", len(self.counts))
            ends = np.cumsum(self.counts[shards])
            starts = np.concatenate([[0], ends[self.window - 1 :: self.window]])
            self._epochs[epoch] = shards, starts
        return self._epochs[epoch]


class Stream(Protocol):
    """Position -> sample: a `SampleOrder`, or a `GroupedOrder` around one."""

    def keys(self, start: int, stop: int) -> list[SampleKey]:
        """The samples at [start, stop), which are part of one optimizer step."""
        ...


class SampleOrder:
    """The stream of samples of one dataset, or of several mixed by ratio.

    Every record of a dataset is drawn once, in an order of its own for each epoch, before the next epoch of that
    dataset starts.

    Args:
        names: names of the datasets; they name the random generators, so that adding a dataset keeps the others'
            orders.
        sizes: number of records of each dataset.
        ratios: weight of each dataset; the sum need not be one.
        seed: seed of the run.
        orders: order of each dataset's records; None: a `FullShuffle` of each.
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
        self._offset = np.uint64(int.from_bytes(_digest(f"{seed}-mixture")[:8], "little"))
        self._counted = 0, np.zeros(len(sizes), dtype=np.int64)

    def keys(self, start: int, stop: int) -> list[SampleKey]:
        """The samples at [start, stop)."""
        counts = self.drawn_before(start).tolist()
        keys = []
        for dataset in self.datasets(start, stop).tolist():
            epoch, place = divmod(counts[dataset], self.sizes[dataset])
            keys.append(SampleKey(dataset, self.orders[dataset].record(epoch, place), epoch))
            counts[dataset] += 1
        return keys

    def datasets(self, start: int, stop: int) -> np.ndarray:
        """The dataset at each position of [start, stop): an evenly spread sequence, so any stretch keeps the ratio."""
        return np.searchsorted(self._bounds, self._points(start, stop), side="right")

    def drawn_before(self, position: int) -> np.ndarray:
        """Samples of each dataset at positions below `position`.

        Counted from the last position asked for, because positions only rise within a run: a lower one is counted
        from 0. A resumed run counts a billion positions in some seconds.
        """
        start, counts = self._counted
        if start > position:
            start, counts = 0, np.zeros_like(counts)
        for first in range(start, position, COUNT_BLOCK):
            points = self._points(first, min(first + COUNT_BLOCK, position))
            below = [np.count_nonzero(points < bound) for bound in self._bounds]
            counts = counts + np.diff([0, *below, len(points)])
        self._counted = position, counts
        return counts

    def _points(self, start: int, stop: int) -> np.ndarray:
        """A point of [0, 2^64) for each position; `_bounds` divide that range among the datasets."""
        return np.arange(start, stop, dtype=np.uint64) * np.uint64(GOLDEN) + self._offset


class GroupedOrder:
    """The samples of a `SampleOrder`, sorted by length within groups of several optimizer steps.

    The steps of a group are shuffled afterwards, so that lengths do not rise and fall with the steps. Like the order it
    changes, this is a pure function of the seed and the position.

    Args:
        order: stream to sort.
        step_size: samples of an optimizer step over all ranks.
        steps: optimizer steps of a group.
        length_of: estimates a sample's length, in any unit.
    """

    def __init__(self, order: SampleOrder, step_size: int, steps: int, length_of: Callable[[SampleKey], int]) -> None:
        self.order = order
        self.step_size = step_size
        self.steps = steps
        self.length_of = length_of
        self._group: tuple[int, list[list[SampleKey]]] | None = None

    def keys(self, start: int, stop: int) -> list[SampleKey]:
        """The samples at [start, stop), which must be part of one step."""
        step, first = divmod(start, self.step_size)
        last = first + stop - start
        assert first <= last <= self.step_size, "samples of several steps"
        number, within = divmod(step, self.steps)
        if self._group is None or self._group[0] != number:
            self._group = number, self._sorted(number)
        return self._group[1][within][first:last]

    def _sorted(self, number: int) -> list[list[SampleKey]]:
        """The samples of each step of a group."""
        size = self.steps * self.step_size
        keys = self.order.keys(number * size, (number + 1) * size)
        keys.sort(key=self.length_of)
        steps = [keys[start : start + self.step_size] for start in range(0, size, self.step_size)]
        Random(f"{self.order.seed}-lengths-{number}").shuffle(steps)
        return steps


def micro_batch_numbers(accumulation: int, world_size: int, rank: int) -> range:
    """Numbers, within each step, of a rank's micro-batches: one of each slot of `GradientSum`.

    Args:
        accumulation: micro-batches of an optimizer step on each rank.
        world_size: number of ranks.
        rank: rank of this process.
    """
    return range(rank, accumulation * world_size, world_size)


class StepSampler(Sampler[list[SampleKey]]):
    """The micro-batches of one rank for the steps [start_step, stop_step).

    Args:
        order: stream of samples.
        batch_size: samples of a micro-batch.
        accumulation: micro-batches of an optimizer step on each rank.
        world_size: number of ranks.
        rank: rank of this process.
        start_step: first optimizer step.
        stop_step: optimizer step after the last.
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

    def __iter__(self) -> Iterator[list[SampleKey]]:
        # Only this rank's samples are listed: with a thousand ranks, a step has 64,000.
        numbers = micro_batch_numbers(self.accumulation, self.world_size, self.rank)
        for step in range(self.start_step, self.stop_step):
            start = step * self.accumulation * self.world_size
            for number in numbers:
                first = (start + number) * self.batch_size
                yield self.order.keys(first, first + self.batch_size)


def _permutation(name: str, size: int) -> np.ndarray:
    """The permutation of [0, size) by the random generator of that name."""
    # RandomState, because numpy promises that its streams never change.
    return np.random.RandomState(np.frombuffer(_digest(name), dtype=np.uint32)).permutation(size)


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _make_room(kept: dict[Any, Any]) -> None:
    """Remove the earliest entries, so that one more can be kept."""
    while len(kept) >= KEPT_PERMUTATIONS:
        del kept[min(kept)]

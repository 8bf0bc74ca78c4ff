"""The order of training samples: a pure function of the seed and the position in the stream.

The stream has no end and knows nothing of processes, workers or epochs. Optimizer step s consists of the positions
[s * G, (s + 1) * G) with G = batch_size * world_size * accumulation, so any number of processes with the same G trains
on the same samples in each step, and a resumed run goes on where it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from torch.utils.data import Sampler

from minigpt4.datasets.counting import below
from minigpt4.datasets.orders import FullShuffle, Order, digest

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

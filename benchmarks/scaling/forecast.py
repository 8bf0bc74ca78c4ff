"""Assumptions -> the time of a step on many processes, and what sets it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.scaling.allreduce import FLOAT32, Link, projection_parameters, ring_seconds, tree_seconds
from benchmarks.scaling.loading import Source, files_opened
from benchmarks.scaling.waiting import EXCESSES
from minigpt4.runners.trainer import CHECK_EVERY

ANSWER_BYTES = 8
"""Of a process, when all ask each other whether to stop."""
MOST = 100_000
"""Processes beyond which nothing is looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """What is not known before there is a cluster.

    Attributes:
        step_seconds: Of one process alone, its data being there.
        batch_size: Samples a process and step.
        width: Of the language model.
        spread: Standard deviation of a process's step time, as a share of it.
        distribution: Of the step times, a key of EXCESSES.
        inside: Between the processes of a node.
        between: Between nodes.
        control: Between processes, for what they agree on through gloo.
        per_node: Processes a node.
        workers: Of a process's loader, a core each.
        decoded_per_second: Samples that a worker reads, decodes and transforms.
        pair_bytes: A picture with its caption, encoded.
        file_bytes_per_second: Of the file system that all share.
        opens_per_second: Files that it opens.
        window: `datasets.NAME.shuffle_shards`.
        sources: Of the mixture.
    """

    step_seconds: float
    batch_size: int
    width: int
    spread: float
    distribution: str
    inside: Link
    between: Link
    control: Link
    per_node: int
    workers: int
    decoded_per_second: float
    pair_bytes: float
    file_bytes_per_second: float
    opens_per_second: float
    window: int
    sources: Sequence[Source]

    def link(self, processes: int) -> Link:
        """The slowest link that a collective crosses: a ring enters and leaves each node once."""
        return self.inside if processes <= self.per_node else self.between


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Seconds a step of what comes one after the other, and of what goes on beside it.

    Attributes:
        devices: A process alone.
        waiting: For the slowest process.
        gradients: All-reduce of the projection's gradient, and before it of the number of target tokens.
        agreeing: On whether to stop, spread over the steps between two questions.
        loader: A process's workers prepare its samples.
        bytes_read: The file system delivers those of all.
        opens: The file system opens the files of all.
    """

    devices: float
    waiting: float
    gradients: float
    agreeing: float
    loader: float
    bytes_read: float
    opens: float

    @property
    def training(self) -> float:
        """What the processes do one after the other."""
        return self.devices + self.waiting + self.gradients + self.agreeing

    @property
    def step(self) -> float:
        """Seconds a step: data is prepared meanwhile, and sets the pace only where it takes longer."""
        return max(self.training, *self.supplies.values())

    @property
    def limit(self) -> str:
        """What sets the pace."""
        sides = {"devices": self.training} | self.supplies
        return max(sides, key=sides.__getitem__)

    @property
    def supplies(self) -> dict[str, float]:
        """What goes on beside the training, and can hold it up."""
        return {"loader's cores": self.loader, "bytes read": self.bytes_read, "opening shards": self.opens}

    @property
    def loss(self) -> str:
        """What most of the time beyond the devices' own goes to."""
        losses = {"waiting": self.waiting, "gradients": self.gradients, "agreeing": self.agreeing}
        losses["supply"] = self.step - self.training
        return max(losses, key=losses.__getitem__)


def all_reduce_seconds(processes: int, size: float, link: Link) -> float:
    """The quicker of ring and tree, as NCCL chooses."""
    return min(ring_seconds(processes, size, link), tree_seconds(processes, size, link))


def forecast(processes: int, assumed: Assumptions) -> Forecast:
    """What a step takes. The gradient is counted in full, for the projection's is the last that backward comes to."""
    link = assumed.link(processes)
    batch, pairs = assumed.batch_size, assumed.batch_size * processes
    opened = files_opened(assumed.sources, assumed.window, batch, processes, assumed.workers)
    gradient = FLOAT32 * projection_parameters(assumed.width)
    question = ring_seconds(processes, ANSWER_BYTES, assumed.control)
    return Forecast(
        devices=assumed.step_seconds,
        waiting=assumed.step_seconds * assumed.spread * EXCESSES[assumed.distribution](processes),
        gradients=sum(all_reduce_seconds(processes, size, link) for size in (gradient, FLOAT32)),
        agreeing=question / CHECK_EVERY,
        loader=batch / (assumed.workers * assumed.decoded_per_second),
        bytes_read=pairs * assumed.pair_bytes / assumed.file_bytes_per_second,
        opens=opened / assumed.opens_per_second,
    )


def efficiency(processes: int, assumed: Assumptions) -> float:
    """Samples a second and process, over those of one process alone."""
    return forecast(1, assumed).step / forecast(processes, assumed).step


def processes_until(assumed: Assumptions, supply: str, most: int = MOST) -> int | None:
    """The smallest number of processes whose training is held up by a supply.

    Args:
        assumed: With any number of processes.
        supply: A key of `Forecast.supplies`.
        most: Processes looked at.

    Returns:
        None where even so many are not held up.
    """

    def held_up(processes: int) -> bool:
        found = forecast(processes, assumed)
        return found.supplies[supply] > found.training

    if not held_up(most):
        return None
    # The more processes, the more they ask for in nearly the same time, so the answer can be halved in on.
    return bisect_left(range(1, most), True, key=held_up) + 1

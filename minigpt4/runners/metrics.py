"""Numbers of a run: losses, timing, throughput, memory, and the trackers they are sent to."""

from __future__ import annotations

import importlib.util
import math
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from minigpt4.common.distributed import Processes
from minigpt4.common.errors import ConfigError, did_you_mean
from minigpt4.models.flops import Work
from minigpt4.tasks import StepLoss

REPEATS = 5
LONG = 0.01
"""Seconds; a processor that has to imitate the number format would keep the run waiting over a large product."""


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that `work` takes, the device's queue emptied before and after."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_peak(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a square matrix product, the median of five; smaller ones where the device takes long over them."""
    size, largest = (8192, 8192) if device.type == "cuda" else (256, 1024)
    while True:
        a = torch.ones(size, size, dtype=dtype, device=device)
        a @ a
        seconds = median(timed(lambda a=a: a @ a, device) for _ in range(REPEATS))  # type: ignore[misc]
        if size == largest or seconds > LONG:
            return 2 * size**3 / seconds
        size *= 2


@dataclass(frozen=True, slots=True)
class Throughput:
    """Of all processes together.

    Attributes:
        samples_per_second: Trained on.
        tokens_per_second: Images included, padding not.
        padded_tokens_per_second: The same with padding.
        mfu: Model FLOP utilisation: operations a second over what a large matrix product reaches, measured.
    """

    samples_per_second: float
    tokens_per_second: float
    padded_tokens_per_second: float
    mfu: float

    @classmethod
    def of(cls, work: Work, seconds: float, peak: float) -> Throughput:
        """From work done in so many seconds.

        Args:
            work: Of all processes.
            seconds: It took.
            peak: FLOP/s of all devices.
        """
        seconds = max(seconds, 1e-9)
        return cls(
            work.samples / seconds, work.tokens / seconds, work.padded_tokens / seconds, work.flops / seconds / peak
        )

    def __str__(self) -> str:
        return "  ".join(
            [
                f"samples/s: {self.samples_per_second:.2f}",
                f"tokens/s: {self.tokens_per_second:.0f}",
                f"padded tokens/s: {self.padded_tokens_per_second:.0f}",
                f"mfu: {self.mfu:.3f}",
            ]
        )


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimizer step, on the host.

    Attributes:
        step: Global number, from 0.
        loss: Mean over the target tokens of the global batch.
        targets: How many there were.
        grad_norm: Before clipping.
        skipped: Whether the update was left out because a gradient was not finite.
        bad_here: Whether this process's own loss was not finite.
        image_ids: Samples of this process.
    """

    step: int
    loss: float
    targets: float
    grad_norm: float
    skipped: bool
    bad_here: bool
    image_ids: Sequence[str]

    @property
    def finite(self) -> bool:
        """Whether the loss is a number in every process."""
        return math.isfinite(self.loss)


class StepWindow:
    """The steps since the last log point."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._local: list[Tensor] = []
        self._steps: list[tuple[int, list[str]]] = []
        self._work = Work()

    def add(self, step: int, loss: StepLoss, norm: Tensor, skipped: Tensor, image_ids: list[str], work: Work) -> None:
        """Keep a step's scalars, on the device, and what this process did in it."""
        self._local.append(loss.local_sum)
        self._rows.append(torch.stack([loss.targets.double(), norm.double(), skipped.double()]))
        self._steps.append((step, image_ids))
        self._work += work

    def flush(self, processes: Processes) -> tuple[list[StepRecord], Work]:
        """All steps kept, in order, and the work of all processes in them.

        Waits for the device; every process must call it at the same step.
        """
        if not self._steps:
            return [], Work()
        done = torch.tensor(astuple(self._work), dtype=torch.float64, device=processes.device)
        work = Work(*processes.sum(done).tolist())
        local = torch.stack(self._local)
        total = processes.sum(local.clone())
        rows = torch.cat([total[:, None], torch.stack(self._rows), local[:, None]], dim=1).tolist()
        records = [
            StepRecord(
                step=step,
                loss=loss / max(targets, 1.0),
                targets=targets,
                grad_norm=norm,
                skipped=bool(skipped),
                bad_here=not math.isfinite(own),
                image_ids=ids,
            )
            for (loss, targets, norm, skipped, own), (step, ids) in zip(rows, self._steps, strict=True)
        ]
        self.__init__()  # type: ignore[misc]
        return records, work


@dataclass(slots=True)
class EpochMeter:
    """Running sums of an epoch, on the host; part of a checkpoint, so that a resumed epoch reports the same.

    Attributes:
        loss_sum: Over target tokens of all processes.
        targets: Target tokens.
        steps: Optimizer steps counted.
        skipped_steps: Steps left out because a gradient was not finite.
        skipped_images: Pictures of this process that could not be read.
        seconds: Spent training.
        samples: That all processes trained on.
        tokens: Of these.
        padded_tokens: The same with the padding that went through the language model.
        flops: Operations that all this took.
    """

    loss_sum: float = 0.0
    targets: float = 0.0
    steps: int = 0
    skipped_steps: int = 0
    skipped_images: int = 0
    seconds: float = 0.0
    samples: float = 0.0
    tokens: float = 0.0
    padded_tokens: float = 0.0
    flops: float = 0.0

    def add(self, records: Sequence[StepRecord], work: Work) -> None:
        """Count steps, one after the other, so that the sums do not depend on where the log points are."""
        for name, amount in asdict(work).items():
            setattr(self, name, getattr(self, name) + amount)
        for record in records:
            self.steps += 1
            if record.skipped or not record.finite:
                self.skipped_steps += 1
                continue
            self.loss_sum += record.loss * record.targets
            self.targets += record.targets

    @property
    def loss(self) -> float | None:
        """Mean over target tokens; None before the first."""
        return self.loss_sum / self.targets if self.targets else None

    @property
    def work(self) -> Work:
        """What all processes did in the epoch."""
        return Work(self.samples, self.tokens, self.padded_tokens, self.flops)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        for field in fields(self):
            setattr(self, field.name, state.get(field.name, field.default))


def peak_memory(device: torch.device) -> float:
    """Peak memory in MiB: of the GPU, or of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, KiB elsewhere


class StepClock:
    """Seconds a step takes, as the host sees them: exact over a stretch between two waits for the device."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin a stretch of steps, leaving out what came before (a validation)."""
        self._began = time.perf_counter()
        self._steps = 0
        self._seconds = 0.0
        self._data = 0.0

    def waited(self, seconds: float) -> None:
        """Count time spent waiting for data."""
        self._data += seconds

    def stop(self, steps: int) -> float:
        """Seconds since the last call, in which so many steps were done."""
        now = time.perf_counter()
        passed, self._began = now - self._began, now
        self._steps += steps
        self._seconds += passed
        return passed

    def lap(self) -> tuple[int, float, float]:
        """Steps since the last lap, seconds of one, and of these waiting for data."""
        steps = max(1, self._steps)
        lap = self._steps, self._seconds / steps, self._data / steps
        self._steps, self._seconds, self._data = 0, 0.0, 0.0
        return lap


PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}


def check_trackers(names: Sequence[str]) -> None:
    """Raise a ConfigError for a tracker that is unknown or not installed."""
    for name in names:
        if name not in PACKAGES:
            raise ConfigError(f"run.trackers: unknown tracker '{name}'; {did_you_mean(name, PACKAGES)}")
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise ConfigError(
                f"run.trackers: {name} is not installed; run: pip install {PACKAGES[name]}, or take it off the list"
            )


class Trackers:
    """The trackers of a run; in other processes than the main one nothing is sent.

    Args:
        names: Of `PACKAGES`.
        project: What the runs are grouped under.
        folder: The run folder; its name is the run's.
        config: Resolved configuration, shown beside the curves.
        active: Whether this is the main process.
    """

    def __init__(
        self, names: Sequence[str], project: str, folder: Path, config: Mapping[str, Any], active: bool
    ) -> None:
        check_trackers(names)
        self._names = names if active else ()
        self._project = project
        self._folder = folder
        self._config = config
        self._trackers: list[Any] = []

    def start(self, step: int) -> None:
        """Open them, before optimizer step `step`; what TensorBoard has of later ones, in a run gone on with, goes."""
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        for name in self._names:
            tracker_class = LOGGER_TYPE_TO_CLASS[name]
            if tracker_class.requires_logging_directory:
                # One step more: the epoch that ends at a step is logged under the same number as the step that follows.
                tracker = tracker_class("tensorboard", logging_dir=str(self._folder), purge_step=step + 1)
            else:
                tracker = tracker_class(self._project, name=self._folder.name)
            tracker.start()
            if name != "tensorboard":  # its writer would make a run of its own of them; config.yaml lies beside it
                tracker.store_init_configuration(dict(self._config))
            self._trackers.append(tracker)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send the values of an optimizer step."""
        for tracker in self._trackers:
            tracker.log(dict(values), step=step)

    def finish(self) -> None:
        """Flush and close."""
        for tracker in self._trackers:
            tracker.finish()
        self._trackers = []

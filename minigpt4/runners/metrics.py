"""Numbers of a run: losses, timing, throughput, memory, and the trackers that they are sent to."""

from __future__ import annotations

import importlib.util
import math
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minigpt4.common.distributed import Processes
from minigpt4.common.errors import ConfigError, did_you_mean
from minigpt4.common.logging import duration
from minigpt4.models.flops import Work, datasheet_flops
from minigpt4.tasks.training import StepLoss

TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}
"""Trackers and the packages to install for them."""
PEAK_REPEATS = 5
"""Matrix products of which the fastest counts."""
PEAK_SECONDS = 0.01
"""A product that takes longer is not followed by a larger one: a processor that has to emulate the number format would
delay the run."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimizer step, on the host.

    Attributes:
        step: global optimizer step, from 0.
        loss: mean over the target tokens of the global batch.
        targets: target tokens of the global batch.
        grad_norm: gradient norm before clipping.
        skipped: whether the update was skipped because a gradient was not finite.
        bad_here: whether the loss of this rank was not finite.
        weights_finite: whether weights and moments were finite after the update.
        image_ids: samples of this rank.
    """

    step: int
    loss: float
    targets: float
    grad_norm: float
    skipped: bool
    bad_here: bool
    weights_finite: bool
    image_ids: Sequence[str]

    @property
    def finite(self) -> bool:
        """Whether the loss is finite on every rank."""
        return math.isfinite(self.loss)


class StepWindow:
    """The steps since the last log point, their numbers still on the device."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._local: list[Tensor] = []
        self._steps: list[tuple[int, list[str]]] = []
        self._work = Work()

    def add(
        self,
        step: int,
        loss: StepLoss,
        norm: Tensor,
        skipped: Tensor,
        weights_finite: Tensor,
        image_ids: list[str],
        work: Work,
    ) -> None:
        """Keep the scalars of a step, on the device, and the work of this rank in it."""
        self._local.append(loss.local_sum)
        scalars = [loss.targets, norm, skipped, weights_finite]
        self._rows.append(torch.stack([scalar.double() for scalar in scalars]))
        self._steps.append((step, image_ids))
        self._work += work

    def flush(self, processes: Processes) -> tuple[list[StepRecord], Work]:
        """All steps kept, in order, and the work of all ranks in them.

        Waits for the device; every rank must call it at the same step.
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
                weights_finite=bool(weights_finite),
                image_ids=ids,
            )
            for (loss, targets, norm, skipped, weights_finite, own), (step, ids) in zip(rows, self._steps, strict=True)
        ]
        self.__init__()  # type: ignore[misc]
        return records, work


@dataclass(slots=True)
class EpochMeter:
    """Running sums of an epoch, on the host; part of a checkpoint, so that a resumed epoch reports the same.

    Attributes:
        loss_sum: sum of the loss over the target tokens of all ranks.
        targets: target tokens.
        steps: optimizer steps.
        skipped_steps: optimizer steps skipped because a gradient was not finite.
        skipped_images: images of this rank that could not be read.
        seconds: time spent training.
        samples: samples of all ranks.
        tokens: tokens of these samples.
        padded_tokens: the same with the padding that went through the language model.
        flops: floating-point operations.
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
        """Count steps one by one, so that the sums do not depend on where the log points are."""
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
        """Work of all ranks in the epoch."""
        return Work(self.samples, self.tokens, self.padded_tokens, self.flops)

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the sums from a checkpoint."""
        for field in fields(self):
            setattr(self, field.name, state.get(field.name, field.default))


class StepClock:
    """Seconds of a step, measured on the host: exact between two waits for the device."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Start again, leaving out what came before (a validation)."""
        self._began = time.perf_counter()
        self._steps = 0
        self._seconds = 0.0
        self._data = 0.0

    def waited(self, seconds: float) -> None:
        """Count time spent waiting for data."""
        self._data += seconds

    def stop(self, steps: int) -> float:
        """Count steps done since the last call; returns the seconds they took."""
        now = time.perf_counter()
        passed, self._began = now - self._began, now
        self._steps += steps
        self._seconds += passed
        return passed

    def lap(self) -> tuple[int, float, float]:
        """Steps since the last lap, seconds of one step, and the part of them spent waiting for data."""
        steps = max(1, self._steps)
        lap = self._steps, self._seconds / steps, self._data / steps
        self._steps, self._seconds, self._data = 0, 0.0, 0.0
        return lap


class RunTiming:
    """The time left in a run, from the recent steps and the last end of an epoch.

    The first measurement of a process is left out: its step compiles, fills caches and starts workers.

    Args:
        steps_per_epoch: optimizer steps of an epoch.
        epochs: epochs of the run.
    """

    def __init__(self, steps_per_epoch: int, epochs: int) -> None:
        self._steps_per_epoch = steps_per_epoch
        self._epochs = epochs
        self._begun = False
        self._steps = 0.0
        self._seconds = 0.0
        self._end_seconds = 0.0

    def count_steps(self, steps: int, seconds: float) -> None:
        """Count optimizer steps; the earlier ones lose half their weight.

        Args:
            steps: how many.
            seconds: duration of one of them.
        """
        if self._begun:
            self._steps = self._steps / 2 + steps
            self._seconds = self._seconds / 2 + steps * seconds
        self._begun = True

    def count_epoch_end(self, seconds: float) -> None:
        """Set the duration of a validation and the checkpoint behind it."""
        self._end_seconds = seconds

    def seconds_left(self, done: int) -> float | None:
        """Seconds to the end of the run after `done` optimizer steps of it, at least one; None: not known yet."""
        if not self._steps:
            return None
        ends = self._epochs - (done - 1) // self._steps_per_epoch
        steps = self._epochs * self._steps_per_epoch - done
        return steps * self._seconds / self._steps + ends * self._end_seconds

    def note(self, done: int) -> str:
        """The time left after `done` optimizer steps, for a bar that shows an epoch's."""
        left = self.seconds_left(done)
        return "" if left is None else f"run: {duration(left)} left"


@dataclass(frozen=True, slots=True)
class Throughput:
    """Speed of all ranks together.

    Attributes:
        samples_per_second: samples.
        tokens_per_second: tokens, image tokens included, padding not.
        padded_tokens_per_second: the same with padding.
        mfu: model FLOP utilisation, 0 to 1: FLOP/s over the peak (`PeakFlops`).
    """

    samples_per_second: float
    tokens_per_second: float
    padded_tokens_per_second: float
    mfu: float

    @classmethod
    def of(cls, work: Work, seconds: float, peak: PeakFlops) -> Throughput:
        """The throughput of some work.

        Args:
            work: work of all ranks.
            seconds: duration.
            peak: peak of all ranks' devices, which rises where this work was faster.
        """
        seconds = max(seconds, 1e-9)
        flops = work.flops / seconds
        peak.raise_to(flops)
        return cls(work.samples / seconds, work.tokens / seconds, work.padded_tokens / seconds, flops / peak.flops)

    def __str__(self) -> str:
        return (
            f"{self.samples_per_second:.3g} samples/s, {self.tokens_per_second:,.0f} tokens/s "
            f"({self.padded_tokens_per_second:,.0f} with padding), MFU {self.mfu:.2f}"
        )


class PeakFlops:
    """FLOP/s that the devices of all ranks can reach together, as far as is known: it only rises.

    Of a GPU whose datasheet is known (`datasheet_flops`) it is the datasheet's. Otherwise large matrix products are
    measured, and the fastest counts; on a CPU before each epoch, because a processor that is busy with other things
    seems slower than it is. Work that was faster still is a better measurement than the products.

    Args:
        dtype: number format of the products.
        processes: ranks of the run.
    """

    def __init__(self, dtype: torch.dtype, processes: Processes) -> None:
        self._dtype = dtype
        self._processes = processes
        cuda = processes.device.type == "cuda"
        name = torch.cuda.get_device_name(processes.device) if cuda else ""
        self._datasheet = datasheet_flops(name, dtype)
        self._once = cuda  # the products need memory that the first epoch takes
        self.flops = 0.0

    def measure(self) -> None:
        """Measure before an epoch; every rank must call it."""
        if self.flops and self._once:
            return
        device = self._processes.device
        own = self._datasheet or matmul_peak(self._dtype, device)
        total = self._processes.sum(torch.tensor(own, dtype=torch.float64, device=device))
        self.raise_to(float(total))

    def raise_to(self, flops: float) -> None:
        """Count FLOP/s that were reached."""
        self.flops = max(self.flops, flops)


def matmul_peak(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a large square matrix product, the fastest of five; of a smaller one where the device is slow."""
    size, largest = (8192, 8192) if device.type == "cuda" else (256, 1024)
    while True:
        a = torch.ones(size, size, dtype=dtype, device=device)
        a @ a
        seconds = min(timed(lambda a=a: a @ a, device) for _ in range(PEAK_REPEATS))  # type: ignore[misc]
        if size == largest or seconds > PEAK_SECONDS:
            return 2 * size**3 / seconds
        size *= 2


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that `work` takes, with the device's queue empty before and after."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda device: None
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def peak_memory(device: torch.device) -> float:
    """Peak memory in MiB: of the GPU, or of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, KiB elsewhere


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are unknown or not installed.

    Raises:
        ConfigError: The message names the tracker.
    """
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"run.trackers: unknown tracker '{name}'; {did_you_mean(name, TRACKERS)}")
        if importlib.util.find_spec(TRACKERS[name]) is None:
            raise ConfigError(
                f"run.trackers: {name} is not installed; run: pip install {TRACKERS[name]}, or remove it from the list"
            )


class Trackers:
    """The trackers of a run; only rank 0 sends anything.

    Args:
        names: keys of `TRACKERS`, checked by `check_trackers`.
        project: name that groups runs.
        folder: run folder; its name is the run's.
        config: resolved configuration, shown beside the curves.
        active: whether this is rank 0.
    """

    def __init__(
        self, names: Sequence[str], project: str, folder: Path, config: Mapping[str, Any], *, active: bool
    ) -> None:
        self._names = names if active else ()
        self._project = project
        self._folder = folder
        self._config = config
        self._trackers: list[Any] = []

    def start(self, step: int) -> None:
        """Open the trackers before optimizer step `step`; TensorBoard drops later steps of a run that is resumed."""
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        for name in self._names:
            tracker_class = LOGGER_TYPE_TO_CLASS[name]
            if tracker_class.requires_logging_directory:
                # One step more: an epoch that ends at a step is logged under the same number as the step that follows.
                tracker = tracker_class("tensorboard", logging_dir=str(self._folder), purge_step=step + 1)
            else:
                tracker = tracker_class(self._project, name=self._folder.name)
            tracker.start()
            if name != "tensorboard":  # its writer would make another run of them; config.yaml is in the folder
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

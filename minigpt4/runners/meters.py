"""Numbers of the steps: kept on the device, brought to the host together at log points."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from minigpt4.common.dist import Processes
from minigpt4.models.work import Work
from minigpt4.tasks import StepLoss


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

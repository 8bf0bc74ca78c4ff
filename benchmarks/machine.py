"""What this machine can do at best, measured, so that a time can be held against it."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Generic, TypeVar

import torch

from minigpt4.common.matmul import torch_default_matmul
from minigpt4.runners.metrics import timed

T = TypeVar("T")


def describe_machine(device: torch.device) -> str:
    """Processor or card, threads and versions."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return f"{where}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        return f"{names[0]} ({os.cpu_count()} cores)"
    except (OSError, IndexError):
        return f"{platform.processor() or platform.machine()} ({os.cpu_count()} cores)"


def as_torch_is(work: Callable[[], T]) -> Callable[[], T]:
    """The work with torch's own choice of library for matrix products, as programs other than ours run it."""

    def run() -> T:
        with torch_default_matmul():
            return work()

    return run


@dataclass(slots=True)
class Measured(Generic[T]):
    """Work that was timed several times.

    Attributes:
        times: seconds of each counted run.
        result: what the last run returned.
    """

    times: list[float]
    result: T

    @property
    def seconds(self) -> float:
        """The median."""
        return median(self.times)


def interleaved(works: Mapping[str, Callable[[], T]], rounds: int, device: torch.device) -> dict[str, Measured[T]]:
    """Time each piece of work, in turns so that a drifting machine treats all alike.

    Args:
        works: name -> work; each runs once before, uncounted.
        rounds: counted runs of each.
        device: where the work happens.
    """
    measured = {name: Measured([], work()) for name, work in works.items()}
    for _ in range(rounds):
        for name, work in works.items():
            measured[name].times.append(timed(lambda: setattr(measured[name], "result", work()), device))  # noqa: B023
    return measured

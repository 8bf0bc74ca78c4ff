"""What this machine can do at best, measured, so that a time can be held against it."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable

import torch

from minigpt4.runners.peak import timed


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


def interleaved(works: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each piece of work, taken in turns so that a drifting machine treats all alike.

    Args:
        works: name -> work; each is run once beforehand, uncounted.
        rounds: times each is counted.
        device: where the work happens.
    """
    for work in works.values():
        timed(work, device)
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            seconds[name].append(timed(work, device))
    return seconds

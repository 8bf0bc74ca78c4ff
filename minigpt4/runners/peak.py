"""What a device can do at best, measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

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

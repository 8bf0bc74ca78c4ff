"""What a device can do at best, measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

REPEATS = 5


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
    """FLOP/s of a square matrix product, the median of five."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.ones(size, size, dtype=dtype, device=device)
    a @ a
    return 2 * size**3 / median(timed(lambda: a @ a, device) for _ in range(REPEATS))

"""Align a frozen vision encoder with a frozen language model by training one small projection."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Before any file with the syntax or the packages that are missing: one line instead of a traceback, for every command.
if sys.version_info < (3, 10):  # noqa: UP036
    raise SystemExit(
        f"error: Python 3.10 or newer is needed, and {sys.executable} is {sys.version.split()[0]}; "
        "run `make install PYTHON=python3.12` (or the like), then `source .venv/bin/activate`"
    )
if find_spec("omegaconf") is None:
    raise SystemExit(
        f"error: {sys.executable} does not have the packages that are needed; "
        "run `make install`, then `source .venv/bin/activate`"
    )

# Before torch is loaded, which reads them once: a thread that waits for others spins for some 50 microseconds, and then
# sleeps. Where another program wants the same cores, a spinning thread keeps the one that it waits for from running;
# threads that sleep at once cost a small model a third of its speed (benchmarks/spinning.py).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

if TYPE_CHECKING:
    from minigpt4.api import LoadedModel, load

__all__ = ["LoadedModel", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """`load` and `LoadedModel` bring torch along, so they come when they are asked for."""
    if name not in ("load", "LoadedModel"):
        raise AttributeError(f"module 'minigpt4' has no attribute '{name}'")
    from minigpt4 import api

    return getattr(api, name)

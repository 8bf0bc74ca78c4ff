"""Logging set-up, the training line that existing parsers read, and log.txt."""

from __future__ import annotations

import datetime
import json
import logging
import sys
from collections.abc import Mapping
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

from minigpt4.common.files import write_atomically

CONSOLE_FORMAT = "%(asctime)s [%(levelname)s] %(message)s"
KEPT_MESSAGES = 10_000
"""Of the time before the run folder is known."""


def set_up_logging(rank: int = 0) -> None:
    """Send the package's messages to stderr, and keep them for the run folder, which is not known yet.

    The first process speaks from level INFO; the others only warn, and say who they are.

    Args:
        rank: Of this process.
    """
    prefix = f"[rank {rank}] " if rank else ""
    kept = MemoryHandler(KEPT_MESSAGES, flushLevel=logging.CRITICAL + 1)
    logging.basicConfig(
        level=logging.WARNING,
        format=prefix + CONSOLE_FORMAT,
        handlers=[logging.StreamHandler(sys.stderr), kept],
        force=True,
    )
    logging.getLogger("minigpt4").setLevel(logging.WARNING if rank else logging.INFO)
    logging.captureWarnings(True)


def log_to_file(file: Path) -> None:
    """Append all messages since `set_up_logging`, and those to come, to `file` as well."""
    root = logging.getLogger()
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter(CONSOLE_FORMAT))
    for kept in [handler for handler in root.handlers if isinstance(handler, MemoryHandler)]:
        kept.setTarget(handler)
        kept.close()
        root.removeHandler(kept)
    root.addHandler(handler)


def train_line(
    *,
    epoch: int,
    iteration: int,
    iterations: int,
    eta: float,
    lr: float,
    loss: float,
    seconds: float,
    data_seconds: float,
    max_mem: float,
) -> str:
    """The line of LAVIS's MetricLogger, unchanged.

    Args:
        epoch: From 0.
        iteration: Optimizer step within the epoch, from 0.
        iterations: Optimizer steps of the epoch.
        eta: Seconds left in the epoch.
        lr: Learning rate of this step.
        loss: Mean over the target tokens of this step's global batch.
        seconds: A step takes.
        data_seconds: Of it spent waiting for data.
        max_mem: Peak memory in MiB, of the GPU or else of the process.
    """
    width = len(str(iterations))
    return "  ".join(
        [
            f"Train: data epoch: [{epoch}]",
            f"[{iteration:{width}d}/{iterations}]",
            f"eta: {datetime.timedelta(seconds=int(eta))}",
            f"lr: {lr:.6f}",
            f"loss: {loss:.4f}",
            f"time: {seconds:.4f}",
            f"data: {data_seconds:.4f}",
            f"max mem: {max_mem:.0f}",
        ]
    )


def append_epoch(file: Path, values: Mapping[str, Any]) -> None:
    """Add one JSON object as a line to log.txt."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(dict(values)) + "\n")


def read_epochs(file: Path) -> list[dict[str, Any]]:
    """The objects of log.txt; a line cut off by a kill is left out."""
    epochs = []
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    for line in lines:
        try:
            epochs.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return epochs


def forget_epochs_after(file: Path, step: int) -> None:
    """Drop the lines of log.txt beyond optimizer step `step`: a resumed run writes them again."""
    if not file.is_file():
        return
    kept = [json.dumps(values) + "\n" for values in read_epochs(file) if values.get("step", 0) <= step]
    write_atomically(file, lambda temporary: temporary.write_text("".join(kept), encoding="utf-8"))

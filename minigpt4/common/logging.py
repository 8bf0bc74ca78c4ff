"""Logging set-up, the training line that existing parsers read, and log.txt."""

from __future__ import annotations

import datetime
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

from minigpt4.common.errors import ConfigError
from minigpt4.common.files import read_appended, write_text

CONSOLE_FORMAT = "%(asctime)s [%(levelname)s] %(message)s"
KEPT_MESSAGES = 10_000
"""Messages kept until the run folder is known."""


def set_up_logging(rank: int = 0) -> None:
    """Send the package's messages to stderr, and keep them for the run folder, which is not known yet.

    Rank 0 logs from level INFO; the others only warn, with their rank in front.

    Args:
        rank: rank of this process.
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
    """Append all messages since `set_up_logging`, and all later ones, to `file` as well.

    Raises:
        ConfigError: The file cannot be opened for writing.
    """
    root = logging.getLogger()
    try:
        handler = logging.FileHandler(file, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}; set run.output_dir or run.run_dir") from error
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
        epoch: epoch, from 0.
        iteration: optimizer step within the epoch, from 0.
        iterations: optimizer steps of the epoch.
        eta: seconds left in the epoch.
        lr: learning rate of this step.
        loss: mean over the target tokens of this step's global batch.
        seconds: duration of a step.
        data_seconds: part of it spent waiting for data.
        max_mem: peak memory in MiB, of the GPU or else of the process.
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


def read_epochs(file: Path, step: int) -> list[dict[str, Any]]:
    """The objects of log.txt up to optimizer step `step`; a resumed run writes those behind it again."""
    return [values for _, values in read_appended(file) if values.get("step", 0) <= step]


def write_epochs(file: Path, epochs: Sequence[Mapping[str, Any]]) -> None:
    """Replace log.txt by one line for each object; without objects, delete it."""
    if epochs:
        write_text(file, "".join(json.dumps(dict(values)) + "\n" for values in epochs))
    else:
        file.unlink(missing_ok=True)

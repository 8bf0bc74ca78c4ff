"""Logging set-up, the line of a training step, and log.txt."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

from minigpt4.common.errors import ConfigError
from minigpt4.common.files import read_appended, write_text
from minigpt4.common.progress import terminal

CONSOLE_FORMAT = "%(asctime)s [%(levelname)s] %(message)s"
KEPT_MESSAGES = 10_000
"""Messages kept until the run folder is known."""
WAITING_SHARE = 0.2
"""Share of a step spent waiting for data above which the training line says so."""
COLOURS = {logging.WARNING: "yellow", logging.ERROR: "bold red", logging.CRITICAL: "bold red"}


class _TerminalHandler(logging.Handler):
    """Writes messages above the bar of a step, if there is one, and warnings in colour."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            terminal().print(self.format(record), style=COLOURS.get(record.levelno))
        except Exception:
            self.handleError(record)


def set_up_logging(rank: int | None = None) -> None:
    """Send the package's messages to stderr, and keep them for the run folder, which is not known yet.

    Rank 0 logs from level INFO; the others only warn, with their rank in front. Warnings are coloured on a terminal.

    Args:
        rank: rank of this process; None: the launcher's.
    """
    rank = int(os.environ.get("RANK") or 0) if rank is None else rank
    prefix = f"[rank {rank}] " if rank else ""
    kept = MemoryHandler(KEPT_MESSAGES, flushLevel=logging.CRITICAL + 1)
    logging.basicConfig(
        level=logging.WARNING,
        format=prefix + CONSOLE_FORMAT,
        handlers=[_TerminalHandler() if sys.stderr.isatty() else logging.StreamHandler(sys.stderr), kept],
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
    epochs: int,
    step: int,
    steps: int,
    loss: float,
    lr: float,
    samples_per_second: float,
    eta: float | None,
    data_share: float,
) -> str:
    """One line about a training step.

    Args:
        epoch: epoch, from 0, as in the names of checkpoints.
        epochs: epochs of the run.
        step: optimizer step within the epoch, from 1.
        steps: optimizer steps of the epoch.
        loss: mean over the target tokens of this step's global batch.
        lr: learning rate of this step.
        samples_per_second: samples of all ranks in a second, since the last line.
        eta: seconds left in the run, with its validations; None: not known yet.
        data_share: share of the time that was spent waiting for data; shown where it is worth a thought.
    """
    parts = [
        f"epoch {epoch} ({epoch + 1}/{epochs})",
        f"step {step:>{len(str(steps))}}/{steps}",
        f"loss {loss:.4f}",
        f"lr {lr:.2e}".replace("e-0", "e-"),
        f"{samples_per_second:.3g} samples/s",
        f"eta {'?' if eta is None else timedelta(seconds=round(eta))}",
    ]
    if data_share > WAITING_SHARE:
        parts.append(f"waiting for data {data_share:.0%} (raise run.num_workers)")
    return "  ".join(parts)


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

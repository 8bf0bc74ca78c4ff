"""What a command shows while it runs: messages, the progress of long steps, the line of a training step, log.txt."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from datetime import timedelta
from functools import lru_cache
from logging.handlers import MemoryHandler
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from minigpt4.common.errors import ConfigError, counted
from minigpt4.common.files import read_appended, write_text

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")
logger = logging.getLogger(__name__)
CONSOLE_FORMAT = "%(asctime)s [%(levelname)s] %(message)s"
KEPT_MESSAGES = 10_000
"""Messages kept until the run folder is known."""
WAITING_SHARE = 0.2
"""Share of a step spent waiting for data above which the training line says so."""
COLOURS = {logging.WARNING: "yellow", logging.ERROR: "bold red", logging.CRITICAL: "bold red"}
FIRST_LINE = 30.0
"""Seconds after which a line is due, whatever was done; each further one is due after `LATER_LINES` times as many."""
LATER_LINES = 4.0
TENTHS = 10
"""Parts of a step that end in a line each, if there is a total."""
SHORTEST_GAP = 2.0
"""Seconds between two lines; a step that is shorter usually ends without any."""
REFRESH = 0.1
"""Seconds between two drawings of a bar."""
RECENT = 64
"""Moments that the speed is measured over, at least half a second apart."""


@lru_cache(maxsize=1)
def terminal() -> Console:
    """The terminal behind stderr, shared by bars and messages, so that a message is written above a bar."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """H:MM:SS, and tenths of a second below ten seconds."""
    return f"{seconds:.1f} s" if seconds < 10 else str(timedelta(seconds=round(seconds)))


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


def announce_imports() -> None:
    """Send the package's messages to stderr, and say first what a command then waits for, silently and for seconds."""
    set_up_logging()
    logger.info("importing torch and transformers")


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


class Progress:
    """Shows how far a step is, wherever the package's messages of level INFO are shown.

    On a terminal it is a bar, which leaves a line when it ends. Elsewhere it is at most a dozen lines: one at each
    tenth, and one after half a minute where the first tenth takes longer. The first item, which starts workers, fills
    caches and compiles, does not count for the time left.

    Args:
        title: what is done, for example "captions of checkpoint_0 (1 of 6)".
        total: number of items; None: unknown.
        unit: name of the items, in the plural.
        done: items done earlier.
        lines: leave lines where there is no terminal, and when it ends; otherwise the caller says as much.
        shortest: seconds below which it ends without a line.
    """

    def __init__(
        self,
        title: str,
        total: float | None,
        unit: str,
        *,
        done: float = 0,
        lines: bool = True,
        shortest: float = SHORTEST_GAP,
    ) -> None:
        self.title = title
        self.total = total
        self.unit = unit
        self.done = done
        self.lines = lines
        self.shortest = shortest
        self._before = done
        self._bar: Any = None

    def __enter__(self) -> Progress:
        self._began = self._last = time.monotonic()
        self._gap = FIRST_LINE
        self._tenth = self._tenths()
        self._moments: deque[tuple[float, float]] = deque(maxlen=RECENT)
        if logger.isEnabledFor(logging.INFO) and sys.stderr.isatty():
            self._bar = _new_bar(self.title, self.total, self.done)
            self._bar.start()
            self._draw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        seconds = time.monotonic() - self._began
        if self.lines and kind is None and seconds >= self.shortest:
            done = self.done - self._before
            logger.info("%s: %s in %s (%s)", self.title, self._counted(done), duration(seconds), self._rate(seconds))

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Count items that are done.

        Args:
            amount: how many.
            note: shown behind the bar's own time left.
        """
        self.done += amount
        now = time.monotonic()
        if not self._moments or now - self._moments[-1][0] >= 0.5:
            self._moments.append((now, self.done))
        if self._bar is not None:
            if now - self._last >= REFRESH or self.done == self.total:
                self._last = now
                self._draw(note)
        elif self.lines and self._is_due(now):
            self._last = now
            logger.info("%s: %s", self.title, ", ".join(filter(None, [self._position(), self._speed()])))

    def seconds_left(self) -> float | None:
        """Seconds to the end at the recent speed; None where nothing tells."""
        if self.total is None or len(self._moments) < 2:
            return None
        (began, first), (now, done) = self._moments[0], self._moments[-1]
        return None if done == first else (self.total - self.done) * (now - began) / (done - first)

    def _is_due(self, now: float) -> bool:
        """Whether a line is to be written now."""
        passed = now - self._last
        if passed < SHORTEST_GAP or self.done == self.total:
            return False
        if passed >= self._gap:
            self._gap *= LATER_LINES
        elif self._tenths() == self._tenth:
            return False
        self._tenth = self._tenths()
        return True

    def _tenths(self) -> int:
        return int(TENTHS * self.done / self.total) if self.total else 0

    def _counted(self, done: float) -> str:
        return counted(round(done), self.unit)

    def _position(self) -> str:
        if not self.total:
            return self._counted(self.done)
        return f"{self.done:,.0f} of {self._counted(self.total)} ({self.done / self.total:.0%})"

    def _rate(self, seconds: float) -> str:
        rate = (self.done - self._before) / max(seconds, 1e-9)
        return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s" if rate >= 1 else f"{1 / max(rate, 1e-9):.1f} s each"

    def _speed(self) -> str:
        left = self.seconds_left()
        rate = self._rate(time.monotonic() - self._began)
        return rate if left is None else f"{rate}, {duration(left)} left"

    def _draw(self, note: str = "") -> None:
        speed = self._speed() if self.done > self._before else ""
        text = "; ".join(filter(None, [speed, note]))
        self._bar.update(0, completed=self.done, position=self._position(), text=text)
        self._bar.refresh()


def track(items: Iterable[T], title: str, unit: str, total: float | None = None) -> Iterator[T]:
    """The items one by one, with their progress.

    Args:
        items: what is worked on.
        title: as for `Progress`.
        unit: as for `Progress`.
        total: number of items; None: their length, if they have one.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(title, total, unit) as progress:
        for item in items:
            yield item
            progress.advance()


def _new_bar(title: str, total: float | None, done: float) -> Any:
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = [TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[position]}")]
    bar = Bar(
        columns[0],
        BarColumn(bar_width=24),
        columns[1],
        TextColumn("{task.fields[text]}", markup=False),
        console=terminal(),
        auto_refresh=False,  # no thread: processes are forked meanwhile
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    bar.add_task(title, total=total, completed=int(done), position="", text="")
    return bar


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
        data_share: share of the time that was spent waiting for data; shown where it is worth a thought, and not in
            the first line of a run.
    """
    parts = [
        f"epoch {epoch} ({epoch + 1}/{epochs})",
        f"step {step:>{len(str(steps))}}/{steps}",
        f"loss {loss:.4f}",
        f"lr {lr:.2e}".replace("e-0", "e-"),
        f"{samples_per_second:.3g} samples/s",
        f"eta {'?' if eta is None else timedelta(seconds=round(eta))}",
    ]
    if eta is not None and data_share > WAITING_SHARE:  # the first step always waits, for workers that start
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

"""What happens to a process: it is killed at one of its writes or at a moment, or finds the disk full or read-only.

Python's audit events tell of every file that is opened for writing, renamed, deleted or made, whoever does it; the
writes of a process are counted by them, so that none is forgotten when code is added.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
"""Audit events, beside "open", of a changed file or folder; `os.replace` is a renaming."""
TORN = b'{"torn'
"""The beginning of an appended line that a kill cut off."""


class Kind(Enum):
    """What happens at the write."""

    nothing = "counted"
    kill = "killed"
    full = "disk full"
    read_only = "read-only folder"


class Write(NamedTuple):
    """A write of a process.

    Attributes:
        seconds: time that the process had computed for.
        what: audit event and path.
    """

    seconds: float
    what: str


@dataclass(frozen=True)
class Disturbance:
    """Happens to one process of a command; to be called in it with its rank, before it begins.

    Attributes:
        folder: only writes below it count.
        journal: file that gets a line for each write, outside `folder`; the rank is added to its name.
        kind: what happens.
        rank: rank of the process that it happens to; the writes of the others are only counted.
        write: number of the write that it happens at, from 1; None: at none.
        seconds: the process is killed when it has computed for this time, which is the same moment on a busy machine;
            None: it is not.
    """

    folder: Path
    journal: Path
    kind: Kind = Kind.nothing
    rank: int = 0
    write: int | None = None
    seconds: float | None = None

    def __call__(self, rank: int) -> None:
        """Begin to watch this process."""
        if self.seconds is not None and rank == self.rank:
            signal.setitimer(signal.ITIMER_PROF, self.seconds)  # SIGPROF, which nobody handles, ends it at once
        _Watch(self, rank).begin()

    def take_writes(self, rank: int) -> list[Write]:
        """What the process `rank` wrote, in order; the journal is deleted."""
        journal = self.journal_of(rank)
        lines = journal.read_text().splitlines() if journal.exists() else []
        journal.unlink(missing_ok=True)
        return [Write(float(seconds), what) for seconds, _, what in (line.partition(" ") for line in lines)]

    def journal_of(self, rank: int) -> Path:
        """The journal of the process `rank`."""
        return self.journal.with_name(f"{self.journal.name}.{rank}")


class _Watch:
    def __init__(self, disturbance: Disturbance, rank: int) -> None:
        self.plan = disturbance
        self.at = disturbance.write if rank == disturbance.rank else None
        self.inside = f"{disturbance.folder.resolve()}{os.sep}"
        self.journal = os.open(disturbance.journal_of(rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.count = 0
        self.busy = False

    def begin(self) -> None:
        synchronise: Callable[[int], None] = os.fsync

        def watched_fsync(file: int) -> None:
            path = os.readlink(f"/proc/self/fd/{file}")
            self._write("os.fsync", path, lambda: _tear(file))
            synchronise(file)

        os.fsync = watched_fsync  # type: ignore[assignment]  # of which there is no audit event
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        flags, start = 0, ""
        if event == "open":
            flags = arguments[2]
            if not isinstance(flags, int) or not flags & WRITE_FLAGS:
                return
        elif event not in CHANGES:
            return
        elif arguments[-1] != -1:  # the descriptor of a folder that the path starts at
            start = os.readlink(f"/proc/self/fd/{arguments[-1]}")
        path = arguments[0]
        if not self.busy and isinstance(path, str | bytes | os.PathLike):
            name = os.path.abspath(os.path.join(start, os.fsdecode(path)))
            if (event == "os.mkdir" and os.path.exists(name)) or (event == "os.remove" and not os.path.lexists(name)):
                return  # changes nothing
            self._write(event, name, lambda: _begin_line(name) if flags & os.O_APPEND else None)

    def _write(self, event: str, path: str, tear: Callable[[], None]) -> None:
        """One write; `tear` leaves the file as a kill within the write does."""
        if not path.startswith(self.inside):
            return
        self.count += 1
        os.write(
            self.journal,
            f"{time.process_time():.3f} {event} {path.removeprefix(self.inside)}\n".encode(errors="replace"),
        )
        kind = self.plan.kind
        if self.at is None or self.count < self.at:
            return
        if kind is Kind.kill:
            self.busy = True
            tear()
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind is Kind.full and event in ("open", "os.mkdir", "os.fsync"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        elif kind is Kind.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)


def _begin_line(path: str) -> None:
    """Append the first bytes of a line."""
    with open(path, "ab", buffering=0) as file:
        file.write(TORN)


def _tear(file: int) -> None:
    """Cut off half of the last line of a file that is appended to."""
    if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_APPEND:
        content = Path(f"/proc/self/fd/{file}").read_bytes()
        last = content.rstrip(b"\n").rfind(b"\n") + 1
        os.truncate(file, (last + len(content)) // 2)

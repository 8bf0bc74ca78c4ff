"""What was done to each sample: one JSON object a line, only ever appended to."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from minigpt4.common.errors import DataError

Event = dict[str, Any]
"""{"sample": id, "step": draw, describe, refine, filter or review, ...}"""


def read_events(path: Path) -> list[Event]:
    """Every whole line; one that a kill cut off at the end of the file is left out.

    Raises:
        DataError: The file cannot be read, or a line before the last is no event.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"ledger {path} cannot be read: {error.strerror}") from error
    # What follows the last line break is nothing, or was being written when the process died.
    return [_event(line, f"{path}, line {number}") for number, line in enumerate(lines[:-1], 1)]


def _event(line: bytes, source: str) -> Event:
    try:
        event = json.loads(line)
    except ValueError as error:
        raise DataError(f"ledger {source}: broken JSON; restore the file, or delete this line") from error
    if (
        not isinstance(event, dict)
        or not isinstance(event.get("sample"), str)
        or not isinstance(event.get("step"), str)
    ):
        raise DataError(f"ledger {source}: an object with the texts 'sample' and 'step' is expected")
    return event


class Ledger:
    """The ledger, open for appending by this process alone.

    Args:
        path: The file; made where it is missing, with its folder.

    Raises:
        DataError: Another process writes to it, or it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = path.open("a+b")
        except OSError as error:
            raise DataError(f"ledger {path} cannot be opened: {error.strerror}; set curation.dir") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise DataError(f"ledger {path} is in use by another curation command; wait for it, or end it") from error
        self._cut_torn_line()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Write events, and wait until they are on the disk."""
        text = "".join(json.dumps(dict(event), ensure_ascii=False) + "\n" for event in events)
        self._file.write(text.encode("utf-8", errors="replace"))
        self._file.flush()
        os.fsync(self._file.fileno())

    def events(self) -> list[Event]:
        """All events so far; errors as for `read_events`."""
        return read_events(self.path)

    def _cut_torn_line(self) -> None:
        """Remove what a kill left of a line, so that the next one does not go on from there."""
        content = self.path.read_bytes()
        if content and not content.endswith(b"\n"):
            self._file.truncate(content.rfind(b"\n") + 1)

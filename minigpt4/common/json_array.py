"""A JSON array that may be larger than memory, one value after the other."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from minigpt4.common.errors import DataError

CHUNK = 1 << 20
"""Bytes read at a time."""
MAX_VALUE = 1 << 24
"""Characters after which an incomplete value is broken JSON."""
MAX_TOKEN = 12
"""Characters of the longest JSON token that is an error when cut: a surrogate pair, escaped."""
BLANKS = (" ", "\t", "\r", "\n")


class BrokenArrayError(DataError):
    """The array ends early, or is not JSON from some byte on."""


class ArrayReader:
    """The values of a JSON array, one after the other, with only a chunk of the file in memory.

    Args:
        file: file opened for reading bytes.
        name: name of the file, for messages.
        progress: called with the number of bytes of each chunk.
    """

    def __init__(self, file: BinaryIO, name: str, progress: Callable[[int], object] = lambda size: None) -> None:
        self.file = file
        self.name = name
        self.progress = progress
        self.ended = False
        self.text = ""
        self.position = 0
        self._discarded = 0
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()

    def __iter__(self) -> Iterator[Any]:
        """Every value.

        Raises:
            DataError: The file holds something else than an array.
            BrokenArrayError: It ends early or is broken; everything before that has been yielded.
        """
        if self._peek() != "[":
            found = self.text[self.position :][:20]
            raise DataError(f"{self.name}: a JSON array of objects, [{{...}}, ...], is expected, found {found!r}")
        self.position += 1
        if self._peek() == "]":
            return
        while True:
            yield self._value()
            separator = self._peek()
            if separator not in (",", "]"):
                raise self._broken("',' or ']' is expected", truncated=not separator)
            self.position += 1
            if separator == "]":
                return

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, end = self._json.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos >= len(self.text) - MAX_TOKEN
                if self.ended or not cut or len(self.text) - self.position > MAX_VALUE:
                    raise self._broken(error.msg, truncated=self.ended and cut) from error
            except (ValueError, RecursionError) as error:  # a number of thousands of digits; lists in lists
                raise self._broken(str(error)) from error
            else:
                # At the end of a chunk, "12" may be the start of "12.5".
                if self.ended or self.text[self.position] in '{["' or self.text[end : end + 1] in (*BLANKS, ",", "]"):
                    self.position = end
                    return value
            self._read()

    def _peek(self) -> str:
        """The next character that is not white space; empty at the end of the file."""
        while True:
            while self.position < len(self.text) and self.text[self.position] in BLANKS:
                self.position += 1
            if self.position < len(self.text):
                return self.text[self.position]
            if self.ended:
                return ""
            self._read()

    def _read(self) -> None:
        chunk = self.file.read(CHUNK)
        self.progress(len(chunk))
        self._discarded += len(self.text[: self.position].encode())
        self.ended = not chunk
        try:
            self.text = self.text[self.position :] + self._utf8.decode(chunk, final=self.ended)
        except UnicodeDecodeError as error:
            self.ended = True
            raise self._broken(f"not UTF-8 ({error.reason})") from error
        self.position = 0

    def _broken(self, reason: str, *, truncated: bool = False) -> BrokenArrayError:
        byte = self._discarded + len(self.text[: self.position].encode())
        return BrokenArrayError(
            f"{self.name}: {'truncated' if truncated else 'broken JSON'} at byte {byte:,} ({reason})"
        )

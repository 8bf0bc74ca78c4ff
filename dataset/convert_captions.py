"""Turn BLIP's caption lists (one JSON array of {"caption", "url"}) into the table that img2dataset downloads.

    python dataset/convert_captions.py data/cc_sbu/ccs_synthetic_filtered_large.json

The file is read in chunks, so it may be larger than memory.
"""

from __future__ import annotations

import argparse
import codecs
import csv
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigpt4.common.cli import exit_on_error
from minigpt4.common.errors import DataError
from minigpt4.common.files import replace_lone_surrogates, write_atomically
from minigpt4.common.logging import Progress, set_up_logging

COLUMNS = ("caption", "url")
DELIMITERS = {".tsv": "\t", ".csv": ","}
CHUNK = 1 << 20
"""Bytes read at a time."""
MAX_VALUE = 1 << 24
"""Characters after which an incomplete value is broken JSON."""
MAX_TOKEN = 12
"""Characters of the longest JSON token that is an error when cut: a surrogate pair, escaped."""
BLANKS = (" ", "\t", "\r", "\n")
EXPECTED = 'a JSON array of objects such as [{"caption": "...", "url": "..."}, ...]'


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
            raise DataError(f"{self.name}: {EXPECTED} is expected, found {self.text[self.position :][:20]!r}")
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


@dataclass(slots=True)
class Counts:
    """Rows written, and values left out: without URL, without caption, or not objects."""

    rows: int = 0
    without_url: int = 0
    without_caption: int = 0
    no_objects: int = 0

    def __str__(self) -> str:
        left_out = f"{self.without_url:,} without url, {self.without_caption:,} without caption"
        return f"{self.rows:,} rows; left out: {left_out}, {self.no_objects:,} that are not objects"


def convert(source: Path, out: Path, limit: int | None = None) -> Counts:
    """Write the table.

    Args:
        source: the JSON array.
        out: the table, .tsv or .csv, written atomically.
        limit: most rows to write.

    Raises:
        DataError: The source is not an array, or a file cannot be read or written.
        BrokenArrayError: The array ends early or is broken; the rows before that are kept in a table called `.partial`.
    """
    if out.suffix not in DELIMITERS:
        raise DataError(f"--out {out}: a name that ends in {' or '.join(DELIMITERS)} is expected")
    broken: list[BrokenArrayError] = []
    counts = Counts()

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, delimiter=DELIMITERS[out.suffix], lineterminator="\n")
            table.writerow(COLUMNS)
            try:
                _write_rows(source, table.writerow, counts, limit)
            except BrokenArrayError as error:
                broken.append(error)
        if broken:
            temporary.replace(partial)
            raise broken[0]

    partial = out.with_suffix(f".partial{out.suffix}")
    try:
        write_atomically(out, write)
    except BrokenArrayError as error:
        raise BrokenArrayError(
            f"{error}; {partial} keeps the rows before that: {counts}. Download {source.name} again, or use these"
        ) from error
    except OSError as error:
        raise DataError(f"{error.filename or out}: {error.strerror or error}") from error
    return counts


def _write_rows(source: Path, write: Callable[[tuple[str, str]], object], counts: Counts, limit: int | None) -> None:
    with (
        source.open("rb") as file,
        Progress(source.name, source.stat().st_size / 1e6, "MB") as progress,
    ):
        for value in ArrayReader(file, str(source), lambda size: progress.advance(size / 1e6)):
            if counts.rows == limit:
                return
            row = _row(value, counts)
            if row is not None:
                write(row)
                counts.rows += 1


def _row(value: Any, counts: Counts) -> tuple[str, str] | None:
    """Caption and URL, each on one line; None where one is missing."""
    if not isinstance(value, dict):
        counts.no_objects += 1
        return None
    caption, url = (_text(value.get(column)) for column in COLUMNS)
    if not url:
        counts.without_url += 1
    elif not caption:
        counts.without_caption += 1
    return (caption, url) if caption and url else None


def _text(value: Any) -> str:
    return replace_lone_surrogates(" ".join(value.split())) if isinstance(value, str) else ""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the JSON file")
    parser.add_argument("--out", type=Path, help="table to write, .tsv or .csv (default: beside the source, .tsv)")
    parser.add_argument("--limit", type=int, help="most rows to write")
    return parser.parse_args(argv)


@exit_on_error()
def main(argv: list[str] | None = None) -> int:
    """Convert, and print what was written."""
    args = parse_args(argv)
    set_up_logging()
    out = args.out or args.source.with_suffix(".tsv")
    print(f"{out}: {convert(args.source, out, args.limit)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

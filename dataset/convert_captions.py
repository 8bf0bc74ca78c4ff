"""Turn BLIP's caption lists (one JSON array of {"caption", "url"}) into the table that img2dataset downloads.

    python dataset/convert_captions.py data/cc_sbu/ccs_synthetic_filtered_large.json

The file is read a piece at a time, so it may be larger than memory.
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

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigpt4.common.cli import exit_on_error
from minigpt4.common.errors import DataError
from minigpt4.common.files import write_atomically

COLUMNS = ("caption", "url")
DELIMITERS = {".tsv": "\t", ".csv": ","}
PIECE = 1 << 20
"""Bytes read at a time."""
LONGEST = 1 << 24
"""Characters after which what looks like the beginning of a value is broken JSON."""
LONGEST_TOKEN = 12
"""Characters of the longest thing in JSON that makes no sense when it is cut: two escaped halves of a character."""
BLANKS = (" ", "\t", "\r", "\n")
EXPECTED = 'a JSON array of objects such as [{"caption": "...", "url": "..."}, ...]'


class BrokenArrayError(DataError):
    """The array breaks off or is no JSON from some byte on."""


class ArrayReader:
    """The values of a JSON array, one after the other, with only a piece of the file in memory.

    Args:
        file: Opened for reading bytes.
        name: Of the file, for messages.
        progress: Called with the number of bytes of each piece.
    """

    def __init__(self, file: BinaryIO, name: str, progress: Callable[[int], object] = lambda size: None) -> None:
        self.file = file
        self.name = name
        self.progress = progress
        self.ended = False
        self.text = ""
        self.place = 0
        self._dropped = 0
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()

    def __iter__(self) -> Iterator[Any]:
        """Every value.

        Raises:
            DataError: The file holds something else than an array.
            BrokenArrayError: It breaks off, or is broken; everything before that has been yielded.
        """
        if self._next_character() != "[":
            raise DataError(f"{self.name}: {EXPECTED} is expected, found {self.text[self.place :][:20]!r}")
        self.place += 1
        if self._next_character() == "]":
            return
        while True:
            yield self._value()
            separator = self._next_character()
            if separator not in (",", "]"):
                raise self._broken("',' or ']' is expected", truncated=not separator)
            self.place += 1
            if separator == "]":
                return

    def _value(self) -> Any:
        self._next_character()
        while True:
            try:
                value, end = self._json.raw_decode(self.text, self.place)
            except json.JSONDecodeError as error:
                breaks_off = error.msg.startswith("Unterminated") or error.pos >= len(self.text) - LONGEST_TOKEN
                if self.ended or not breaks_off or len(self.text) - self.place > LONGEST:
                    raise self._broken(error.msg, truncated=self.ended and breaks_off) from error
            else:
                # Where a piece ends, "12" may go on as "12.5".
                if self.ended or self.text[self.place] in '{["' or self.text[end : end + 1] in (*BLANKS, ",", "]"):
                    self.place = end
                    return value
            self._read()

    def _next_character(self) -> str:
        """The next one that is no white space; empty at the end of the file."""
        while True:
            while self.place < len(self.text) and self.text[self.place] in BLANKS:
                self.place += 1
            if self.place < len(self.text):
                return self.text[self.place]
            if self.ended:
                return ""
            self._read()

    def _read(self) -> None:
        piece = self.file.read(PIECE)
        self.progress(len(piece))
        self._dropped += len(self.text[: self.place].encode())
        self.ended = not piece
        try:
            self.text = self.text[self.place :] + self._utf8.decode(piece, final=self.ended)
        except UnicodeDecodeError as error:
            self.ended = True
            raise self._broken(f"not UTF-8 ({error.reason})") from error
        self.place = 0

    def _broken(self, reason: str, *, truncated: bool = False) -> BrokenArrayError:
        byte = self._dropped + len(self.text[: self.place].encode())
        return BrokenArrayError(
            f"{self.name}: {'truncated' if truncated else 'broken JSON'} at byte {byte:,} ({reason})"
        )


@dataclass(slots=True)
class Counts:
    """What became of the values: rows written, and values left out because they have no URL, no caption or no form."""

    rows: int = 0
    without_url: int = 0
    without_caption: int = 0
    no_objects: int = 0

    def __str__(self) -> str:
        left_out = f"{self.without_url:,} without url, {self.without_caption:,} without caption"
        return f"{self.rows:,} rows; left out: {left_out}, {self.no_objects:,} that are no objects"


def convert(source: Path, out: Path, limit: int | None = None) -> Counts:
    """Write the table.

    Args:
        source: The JSON array.
        out: The table, .tsv or .csv; it appears whole or not at all.
        limit: Rows to write at most.

    Raises:
        DataError: The source is no array, or a file cannot be read or written.
        BrokenArrayError: The array breaks off; what stands before that is kept in a table called `.partial`.
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
            f"{error}; {partial} keeps what stands before that: {counts}. Download {source.name} again, or go on with "
            "these"
        ) from error
    except OSError as error:
        raise DataError(f"{error.filename or out}: {error.strerror or error}") from error
    return counts


def _write_rows(source: Path, write: Callable[[tuple[str, str]], object], counts: Counts, limit: int | None) -> None:
    with (
        source.open("rb") as file,
        tqdm(total=source.stat().st_size, unit="B", unit_scale=True, desc=source.name, disable=None) as bar,
    ):
        for value in ArrayReader(file, str(source), bar.update):
            if counts.rows == limit:
                return
            row = _row(value, counts)
            if row is not None:
                write(row)
                counts.rows += 1


def _row(value: Any, counts: Counts) -> tuple[str, str] | None:
    """Caption and URL, each on one line; None where the value has not both."""
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
    return " ".join(value.split()) if isinstance(value, str) else ""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the JSON file")
    parser.add_argument("--out", type=Path, help="table to write, .tsv or .csv (default: beside the source, .tsv)")
    parser.add_argument("--limit", type=int, help="rows to write at most")
    return parser.parse_args(argv)


@exit_on_error()
def main(argv: list[str] | None = None) -> int:
    """Convert, and say what was written."""
    args = parse_args(argv)
    out = args.out or args.source.with_suffix(".tsv")
    print(f"{out}: {convert(args.source, out, args.limit)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

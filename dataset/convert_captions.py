"""Turn BLIP's caption lists (one JSON array of {"caption", "url"}) into the table that img2dataset downloads.

    python dataset/convert_captions.py data/cc_sbu/ccs_synthetic_filtered_large.json

The file is read in chunks, so it may be larger than memory.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigpt4.common.cli import exit_on_error
from minigpt4.common.errors import DataError
from minigpt4.common.files import replace_lone_surrogates, write_atomically
from minigpt4.common.json_array import ArrayReader, BrokenArrayError
from minigpt4.common.logging import Progress, set_up_logging

COLUMNS = ("caption", "url")
DELIMITERS = {".tsv": "\t", ".csv": ","}


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

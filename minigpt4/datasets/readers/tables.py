"""A user's own annotations: JSON lines, a JSON list, or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minigpt4.common.errors import DataError
from minigpt4.common.registry import readers
from minigpt4.common.types import Record
from minigpt4.datasets.readers.rows import Reader, RowProblem, read_text, record_of

EXPECTED = '{"image": "a.jpg", "answer": "..."}'


@readers.register("jsonl")
class JsonlReader(Reader):
    """One JSON object a line; in a file called .json, a list of such objects."""

    def read(self, path: Path) -> Iterator[Record | RowProblem]:
        """Every row of `path`, usable or not; errors as for `Reader.read`."""
        if path.suffix == ".json":
            for number, row in enumerate(read_json_list(path), 1):
                yield _of_object(row, f"{path}, entry {number}")
            return
        # Not splitlines(): U+2028 and its like may stand inside a text.
        for number, line in enumerate(read_text(path).split("\n"), 1):
            if not line.strip():
                continue
            source = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                yield RowProblem(source, f"broken JSON ({error.msg} at column {error.colno}); expected {EXPECTED}")
                continue
            yield _of_object(row, source)


@readers.register("csv")
class CsvReader(Reader):
    """A header with the column names, then a row a record; `answers` and `captions` hold a JSON list in a cell."""

    def read(self, path: Path) -> Iterator[Record | RowProblem]:
        """Every row of `path`, usable or not; errors as for `Reader.read`."""
        table = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
        try:
            # Row 1 is the header, as a spreadsheet counts.
            for number, cells in enumerate(table, 2):
                yield _of_cells(cells, f"{path}, row {number}")
        except csv.Error as error:
            raise DataError(f"{path}, near line {table.line_num}: broken CSV ({error})") from error


def read_json_list(path: Path) -> list[Any]:
    """The list that a JSON file holds.

    Raises:
        DataError: The file is no JSON, or holds something else.
    """
    try:
        rows = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        lines = "; a file with one object a line should be called .jsonl" if error.msg == "Extra data" else ""
        raise DataError(f"{path}, line {error.lineno}: broken JSON ({error.msg}){lines}") from error
    if not isinstance(rows, list):
        raise DataError(f"{path}: a list of objects is expected, found {type(rows).__name__}")
    return rows


def _of_object(row: Any, source: str) -> Record | RowProblem:
    if not isinstance(row, dict):
        return RowProblem(source, f"an object is expected, such as {EXPECTED}, found {type(row).__name__}")
    return record_of(row, source)


def _of_cells(cells: dict[str | Any, Any], source: str) -> Record | RowProblem:
    if None in cells:
        return RowProblem(source, "more cells than the header has; quote a text that contains a comma")
    row = dict(cells)
    for column in ("answers", "captions"):
        if row.get(column):
            try:
                row[column] = json.loads(row[column])
            except json.JSONDecodeError:
                shown = f'\'{column}\' should be a JSON list such as ["a", "b"], found {row[column]!r}'
                return RowProblem(source, shown)
    return record_of(row, source)

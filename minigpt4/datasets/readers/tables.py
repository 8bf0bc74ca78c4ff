"""A user's own annotations: JSON lines, a JSON list, or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minigpt4.common.errors import DataError
from minigpt4.common.files import read_text
from minigpt4.common.registry import readers
from minigpt4.common.types import Record
from minigpt4.datasets.readers.rows import Reader, RowProblem, convert_rows, read_json_list, record_of

EXPECTED = '{"image": "a.jpg", "answer": "..."}'


@readers.register("jsonl")
class JsonlReader(Reader):
    """One JSON object a line; in a file called .json, a list of such objects."""

    def read(self, path: Path) -> Iterator[Record | RowProblem]:
        """Every row of `path`, usable or not; errors as for `Reader.read`."""
        if path.suffix == ".json":
            return convert_rows(_record_of_object, read_json_list(path))
        # Not splitlines(): U+2028 and other separators may be part of a text.
        lines = enumerate(read_text(path).split("\n"), 1)
        return convert_rows(
            _record_of_line, ((f"{path}, line {number}", line) for number, line in lines if line.strip())
        )


@readers.register("csv")
class CsvReader(Reader):
    """A header with the column names, then a row a record; `answers` and `captions` hold a JSON list in a cell."""

    def read(self, path: Path) -> Iterator[Record | RowProblem]:
        """Every row of `path`, usable or not; errors as for `Reader.read`."""
        table = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
        # Row 1 is the header, as in a spreadsheet.
        rows = ((f"{path}, row {number}", cells) for number, cells in enumerate(table, 2))
        try:
            yield from convert_rows(_record_of_cells, rows)
        except csv.Error as error:
            raise DataError(f"{path}, near line {table.line_num}: broken CSV ({error})") from error


def _record_of_line(line: str, source: str) -> Record:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"broken JSON ({error.msg} at column {error.colno}); expected {EXPECTED}") from error
    return _record_of_object(row, source)


def _record_of_object(row: Any, source: str) -> Record:
    if not isinstance(row, dict):
        raise DataError(f"an object is expected, such as {EXPECTED}, found {type(row).__name__}")
    return record_of(row, source)


def _record_of_cells(cells: dict[str | Any, Any], source: str) -> Record:
    if None in cells:
        raise DataError("more cells than the header has; quote a text that contains a comma")
    row = dict(cells)
    for column in ("answers", "captions"):
        if row.get(column):
            try:
                row[column] = json.loads(row[column])
            except json.JSONDecodeError as error:
                expected = f'\'{column}\' should be a JSON list such as ["a", "b"]'
                raise DataError(f"{expected}, found {row[column]!r}") from error
    return record_of(row, source)

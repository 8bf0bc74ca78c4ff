"""A user's own annotations: JSON lines, a JSON list, or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from minigpt4.common.errors import DataError, shown
from minigpt4.common.files import parse_json, read_lines, read_text
from minigpt4.common.registry import readers
from minigpt4.common.types import Record
from minigpt4.datasets.readers.rows import Reader, RowProblem, convert_rows, read_json_list, record_of

LIST_COLUMNS = ("answers", "captions", "images", "conversation", "boxes", "choices")
"""Columns of a CSV whose cells hold a JSON list."""
EXPECTED = '{"image": "a.jpg", "answer": "..."}'


@readers.register("jsonl")
class JsonlReader(Reader):
    """One JSON object a line; in a file called .json, a list of such objects."""

    def read(self, path: Path) -> Iterator[Record | RowProblem]:
        """Every row of `path`, usable or not; errors as for `Reader.read`."""
        if path.suffix.lower() == ".csv":
            raise DataError(f"{path}: the reader jsonl reads JSON lines; for CSV set reader: csv")
        if path.suffix == ".json":
            return convert_rows(_record_of_object, read_json_list(path))
        return convert_rows(_record_of_line, ((f"{path}, line {number}", line) for number, line in read_lines(path)))


@readers.register("csv")
class CsvReader(Reader):
    """A header with the column names, then a row a record; lists are JSON in a cell (`LIST_COLUMNS`)."""

    def read(self, path: Path) -> Iterator[Record | RowProblem]:
        """Every row of `path`, usable or not; errors as for `Reader.read`."""
        table = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
        # Row 1 is the header, as in a spreadsheet.
        rows = ((f"{path}, row {number}", cells) for number, cells in enumerate(table, 2))
        try:
            _check_header(path, table.fieldnames or ())
            yield from convert_rows(_record_of_cells, rows)
        except csv.Error as error:
            raise DataError(f"{path}, near line {table.line_num}: broken CSV ({error})") from error


def _check_header(path: Path, names: Sequence[str]) -> None:
    """Refuse a column that occurs twice, of which Python's reader would silently keep the last."""
    repeated = sorted({name for name in names if name and names.count(name) > 1})
    if repeated:
        raise DataError(f"{path}: the header has the column '{repeated[0]}' twice; delete one, or give it another name")


def _record_of_line(line: str, source: str) -> Record:
    try:
        row = parse_json(line)
    except DataError as error:
        raise DataError(f"{error}; expected {EXPECTED}") from error
    return _record_of_object(row, source)


def _record_of_object(row: Any, source: str) -> Record:
    if not isinstance(row, dict):
        raise DataError(f"an object is expected, such as {EXPECTED}, found {type(row).__name__}")
    return record_of(row, source)


def _record_of_cells(cells: dict[str | Any, Any], source: str) -> Record:
    if None in cells:
        raise DataError("more cells than the header has; quote a text that contains a comma")
    row = dict(cells)
    for column in LIST_COLUMNS:
        if row.get(column):
            try:
                row[column] = parse_json(row[column])
            except DataError as error:
                expected = f'\'{column}\' should be a JSON list such as ["a", "b"]'
                raise DataError(f"{expected}, found {shown(row[column])}") from error
    return record_of(row, source)

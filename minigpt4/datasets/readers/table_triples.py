"""Tables as text: the CSV beside a table's image -> `[["row", "column", "value"], ...]`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from minigpt4.common.errors import DataError
from minigpt4.common.files import read_text
from minigpt4.common.registry import readers
from minigpt4.common.types import Record
from minigpt4.datasets.readers.folder import folder_record, image_files
from minigpt4.datasets.readers.rows import Reader, RowProblem


@readers.register("table_triples")
class TableTriplesReader(Reader):
    """`sales.png` beside `sales.csv`, in sub-folders too; those at the top called train, val and test are splits.

    The header names the columns; the first cell of a row names the row. Empty cells are left out.
    """

    folder: ClassVar[bool] = True

    def read(self, path: Path) -> Iterator[Record | RowProblem]:
        """Every image below `path` in the order of the names, usable or not."""
        for image in image_files(path):
            file = image.with_suffix(".csv")
            try:
                yield folder_record(path, image, [triples_text(_read_table(file))], file)
            except DataError as error:
                yield RowProblem(str(file), str(error))


def triples_text(table: Sequence[Sequence[str]]) -> str:
    """The answer for a table.

    Args:
        table: rows of cells, the header first.

    Raises:
        DataError: A row has no name or another number of cells than the header, or there is no value at all.
    """
    header, *rows = [
        [" ".join(cell.split()) for cell in row] for row in table if any(cell.strip() for cell in row)
    ] or [[]]
    triples = []
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise DataError(f"row {number} has {len(row)} cells, the header {len(header)}")
        if not row[0]:
            raise DataError(f"row {number} has no name; its first cell is empty")
        triples += [[row[0], column, value] for column, value in zip(header[1:], row[1:], strict=True) if value]
    if not triples:
        raise DataError("no value; a header and at least one row with a name and a value are expected")
    return json.dumps(triples, ensure_ascii=False)


def _read_table(file: Path) -> list[list[str]]:
    if not file.is_file():
        raise DataError(f"no table; write it into {file.name} beside the image")
    try:
        return list(csv.reader(io.StringIO(read_text(file), newline=""), strict=True))
    except csv.Error as error:
        raise DataError(f"broken CSV ({error})") from error

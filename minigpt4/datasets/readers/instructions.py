"""Instructions without images in the layout of Unnatural Instructions (arXiv:2212.09689)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minigpt4.common.errors import DataError, shown
from minigpt4.common.files import parse_json, read_lines
from minigpt4.common.registry import readers
from minigpt4.common.types import Record
from minigpt4.datasets.readers.rows import Reader, RowProblem, convert_rows, is_json_list, stream_json_list, text_of

NO_CONSTRAINTS = {"", "none", "none."}
"""How the data says that there is no constraint on the answer."""


@readers.register("instructions")
class InstructionsReader(Reader):
    """JSON lines, or a list, of `{"instances": [{"instruction_with_input", "constraints", "output"}, ...]}`.

    Each instance is a record; the constraints follow the instruction.
    """

    def read(self, path: Path) -> Iterator[Record | RowProblem]:
        """Every instance of `path`, usable or not; errors as for `Reader.read`."""
        if is_json_list(path):
            return convert_rows(_record, _instances(stream_json_list(path)))
        return convert_rows(_record, _instances((f"{path}, line {number}", line) for number, line in read_lines(path)))


def _instances(rows: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """(source, instance) of each row; rows may be the text of a line still."""
    for source, row in rows:
        try:
            row = parse_json(row) if isinstance(row, str) else row
        except DataError as error:
            yield source, error
            continue
        listed = row.get("instances") if isinstance(row, dict) else None
        if not isinstance(listed, list) or not listed:
            yield source, row
            continue
        for number, instance in enumerate(listed, 1):
            yield f"{source}, instance {number}", instance


def _record(row: Any, source: str) -> Record:
    question = text_of(row, "instruction_with_input") if isinstance(row, dict) else None
    answer = text_of(row, "output") if question is not None else None
    if question is None or answer is None:
        raise DataError(
            "an object with 'instances' is expected, each with 'instruction_with_input' and 'output', found "
            f"{shown(row)}"
        )
    constraints = (text_of(row, "constraints") or "").strip()
    if constraints.lower() not in NO_CONSTRAINTS:
        question = f"{question} {constraints}"
    _, _, place = source.rpartition(", line " if ", line " in source else ", entry ")
    return Record(
        image_id="instruction-" + place.replace(", instance ", "-"),
        images=(),
        answers=(answer.strip(),),
        question=question,
        source=source,
    )

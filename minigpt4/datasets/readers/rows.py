"""What readers have in common: one row of columns -> one record, or the reason why not."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from minigpt4.common.errors import DataError, did_you_mean
from minigpt4.common.types import Record
from minigpt4.conversation.template import check_placeholders, with_image_tag

ANSWER_COLUMNS = ("answer", "answers", "caption", "captions")
QUESTION_COLUMNS = ("question", "instruction")
COLUMNS = ("image", *ANSWER_COLUMNS, *QUESTION_COLUMNS, "split", "id")


@dataclass(frozen=True, slots=True)
class RowProblem:
    """A row that cannot be used.

    Attributes:
        source: File and row.
        message: What is wrong and what was expected.
    """

    source: str
    message: str

    def __str__(self) -> str:
        return f"{self.source}: {self.message}"


class Reader(ABC):
    """One annotation format."""

    folder: ClassVar[bool] = False
    """The annotations are a folder, not a file."""

    @abstractmethod
    def read(self, path: Path) -> Iterator[Record | RowProblem]:
        """Every row of `path`, usable or not.

        Raises:
            DataError: The file as a whole cannot be read.
        """


def record_of(row: Mapping[str, Any], source: str) -> Record | RowProblem:
    """A record of the columns image, answer (or answers, caption, captions) and optionally question (or instruction),
    split and id.
    """
    try:
        return _record(row, source)
    except DataError as error:
        return RowProblem(source, str(error).removeprefix(f"{source}: "))


def _record(row: Mapping[str, Any], source: str) -> Record:
    image = text_of(row, "image")
    if image is None:
        raise DataError(_missing("image", row))
    question = _one_of(row, QUESTION_COLUMNS)
    if question is not None:
        check_placeholders(with_image_tag(question), 1, source)
    return Record(
        image_id=text_of(row, "id") or str(PurePosixPath(image).with_suffix("")),
        image=image,
        answers=_answers(row),
        question=question,
        split=text_of(row, "split"),
        source=source,
    )


def text_of(row: Mapping[str, Any], column: str) -> str | None:
    """A column's text; None where it is absent or empty. Whole numbers count as text.

    Raises:
        DataError: It is something else.
    """
    value = row.get(column)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise DataError(f"'{column}' should be a text, found {_shown(value)}")
    return value if value.strip() else None


def texts_of(value: Any, column: str) -> tuple[str, ...]:
    """A list of texts, none of them empty.

    Raises:
        DataError: It is anything else.
    """
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise DataError(f"'{column}' should be a list of texts, found {_shown(value)}")
    if not value or not all(item.strip() for item in value):
        raise DataError(f"'{column}' should hold at least one text and no empty one, found {_shown(value)}")
    return tuple(value)


def _answers(row: Mapping[str, Any]) -> tuple[str, ...]:
    column = _used(row, ANSWER_COLUMNS)
    if column is None:
        raise DataError(_missing("answer", row))
    if column in ("answers", "captions"):
        return texts_of(row[column], column)
    text = text_of(row, column)
    if text is None:
        raise DataError(f"'{column}' is empty")
    return (text,)


def _one_of(row: Mapping[str, Any], columns: tuple[str, ...]) -> str | None:
    column = _used(row, columns)
    return text_of(row, column) if column else None


def _used(row: Mapping[str, Any], columns: tuple[str, ...]) -> str | None:
    """Which one of columns with the same meaning a row fills."""
    used = [column for column in columns if row.get(column) not in (None, "")]
    if len(used) > 1:
        raise DataError(f"'{used[0]}' and '{used[1]}' mean the same; give one of them")
    return used[0] if used else None


def _missing(column: str, row: Mapping[str, Any]) -> str:
    if column in row or (column == "answer" and any(name in row for name in ANSWER_COLUMNS)):
        return f"'{column}' is empty"
    unknown = [name for name in row if isinstance(name, str) and name not in COLUMNS]
    hints = [f"'{name}': {hint}" for name in unknown if "mean" in (hint := did_you_mean(name, COLUMNS))]
    found = ", ".join(map(str, row)) or "nothing"
    return f"no '{column}'; found: {found}" + (f" ({'; '.join(hints)})" if hints else "")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def read_text(path: Path) -> str:
    """A whole UTF-8 file, with or without a byte order mark.

    Raises:
        DataError: It cannot be read or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error

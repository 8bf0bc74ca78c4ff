"""What readers have in common: a row of columns -> a record, or the reason why there is none; records in memory."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, overload

import numpy as np

from minigpt4.common.errors import SHOWN, DataError, did_you_mean, shown
from minigpt4.common.files import read_json, replace_lone_surrogates
from minigpt4.common.types import Record
from minigpt4.conversation.template import place_images

if TYPE_CHECKING:
    from minigpt4.common.boxes import Box

ANSWER_COLUMNS = ("answer", "answers", "caption", "captions")
QUESTION_COLUMNS = ("question", "instruction")
GROUNDING_COLUMNS = ("kind", "boxes", "choices")
COLUMNS = ("image", "images", *ANSWER_COLUMNS, *QUESTION_COLUMNS, "conversation", "split", "id", *GROUNDING_COLUMNS)
CONVERSATION = '[{"question": "...", "answer": "..."}]'
ONE_HUNDREDTH = 0.0101
"""What sides written in hundredths may differ by from the annotated ones."""
_NAMES = tuple(known.name for known in fields(Record))
_BOXES = _NAMES.index("boxes")
_SIDES = ("left", "top", "right", "bottom", "label")


@dataclass(frozen=True, slots=True)
class RowProblem:
    """A row that cannot be used.

    Attributes:
        source: file and row.
        message: what is wrong and what was expected.
    """

    source: str
    message: str

    def __str__(self) -> str:
        return f"{self.source}: {self.message}"


class Reader(ABC):
    """One annotation format."""

    folder: ClassVar[bool] = False
    """Whether the annotations are a folder, not a file."""

    @abstractmethod
    def read(self, path: Path) -> Iterator[Record | RowProblem]:
        """Every row of `path`, usable or not.

        Raises:
            DataError: The file cannot be read at all.
        """


def convert_rows(
    convert: Callable[[Any, str], Record], rows: Iterable[tuple[str, Any]]
) -> Iterator[Record | RowProblem]:
    """The record of each row, or the reason why there is none.

    Args:
        convert: (row, source) -> record; raises DataError for a row that cannot be used.
        rows: (source, row) each; a DataError in place of a row says why there is none.
    """
    for source, row in rows:
        try:
            if isinstance(row, DataError):
                raise row
            yield convert(row, source)
        except DataError as error:
            yield RowProblem(source, str(error).removeprefix(f"{source}: "))
        except RecursionError:
            yield RowProblem(source, "a value is nested too deeply")


def index_rows(rows: Iterable[Mapping[str, Any]], key: str, path: Path) -> dict[str, Mapping[str, Any]]:
    """Rows that others refer to, by `id_of` their ids; those without an id are left out.

    Args:
        rows: objects of a JSON file.
        key: name of the id.
        path: the file, for messages.

    Raises:
        DataError: An id comes twice, so that it is unknown which row is meant.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        name = id_of(row.get(key))
        if name and found.setdefault(name, row) != row:
            raise DataError(f"{path}: the {key} {shown(name)} comes twice, with different entries; correct one of them")
    return found


def id_of(value: Any) -> str:
    """An id as a key, the same for 1 and "1"; empty for none."""
    return value if isinstance(value, str) else "" if value is None else shown(value)


def read_json_list(path: Path) -> Iterator[tuple[str, Any]]:
    """(source, row) of each entry of a JSON list.

    Raises:
        DataError: The file is not JSON, or holds something else.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise DataError(f"{path}: a list of objects is expected, found {type(rows).__name__}")
    return ((f"{path}, entry {number}", row) for number, row in enumerate(rows, 1))


def stream_json_list(path: Path) -> Iterator[tuple[str, Any]]:
    """As `read_json_list`, with only a part of the file in memory.

    Raises:
        DataError: The file cannot be read or is no JSON list; where it is broken, after the rows before that.
    """
    from minigpt4.common.json_array import ArrayReader  # for large files only

    try:
        with path.open("rb") as file:
            for number, row in enumerate(ArrayReader(file, str(path)), 1):
                yield f"{path}, entry {number}", row
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def is_json_list(path: Path) -> bool:
    """Whether a JSON file begins as a list.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def record_of(row: Mapping[str, Any], source: str) -> Record:
    """The record of the columns image (or images), answer (or answers, caption, captions) and optionally question (or
    instruction), split, id, kind, boxes and choices; conversation takes the place of question and answer.

    Raises:
        DataError: A column is missing, or has a wrong value.
    """
    images = _images(row)
    if row.get("conversation") not in (None, ""):
        turns = _turns(row)
        answers: tuple[str, ...] = (turns[-1][1],)
        question: str | None = turns[-1][0]
    else:
        turns = ()
        question_column = _filled_column(row, QUESTION_COLUMNS)
        question = text_of(row, question_column) if question_column else None
        answers = _answers(row)
    if question is not None:
        place_images([asked for asked, _ in turns] or [question], len(images), source)
    elif len(images) != 1:
        raise DataError(
            f"a row with {len(images) or 'no'} images needs a 'question': the prompts of a dataset are about one image"
        )
    image_id = text_of(row, "id") or (without_suffix(images[0]) if images else None)
    if image_id is None:
        raise DataError("a row without an image needs an 'id', by which its predictions are kept")
    boxes = _boxes(row)
    _boxes_in([question or "", *(text for turn in turns[:-1] for text in turn)])
    for named in _boxes_in(answers):
        if boxes and not any(_is_near(named, box) for box in boxes):
            raise DataError(f"the answer names the box {named.text}, which is not among 'boxes', {shown(row['boxes'])}")
    return Record(
        image_id=image_id,
        images=images,
        answers=answers,
        question=question,
        earlier=turns[:-1],
        split=text_of(row, "split"),
        source=source,
        kind=text_of(row, "kind") or "",
        boxes=boxes,
        choices=_choices(row, answers),
    )


def _images(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The paths in 'image', or in the list 'images', which may be empty."""
    image = path_of(row, "image")
    if image is not None and row.get("images") is not None:
        raise DataError("'image' and 'images' mean the same; give one of them")
    if image is not None:
        return (image,)
    listed = row.get("images")
    if listed is None:
        raise DataError(_missing("image", row))
    if not isinstance(listed, list) or not all(isinstance(path, str) and path.strip() for path in listed):
        raise DataError(f"'images' should be a list of paths, found {shown(listed)}")
    return tuple(listed)


def _turns(row: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The questions and answers in 'conversation'."""
    other = _filled_column(row, (*QUESTION_COLUMNS,)) or _filled_column(row, ANSWER_COLUMNS)
    if other:
        raise DataError(f"'conversation' and '{other}' mean the same; give one of them")
    listed = row["conversation"]
    if not isinstance(listed, list) or not listed or not all(isinstance(turn, dict) for turn in listed):
        raise DataError(f"'conversation' should be a list such as {CONVERSATION}, found {shown(listed)}")
    turns = []
    for number, turn in enumerate(listed, 1):
        question, answer = text_of(turn, "question"), text_of(turn, "answer")
        if question is None or answer is None or len(turn) > 2:
            raise DataError(
                f"turn {number} of 'conversation' should have a question and an answer and nothing else, found "
                f"{shown(turn)}"
            )
        turns.append((question, answer))
    return tuple(turns)


def _boxes(row: Mapping[str, Any]) -> tuple[Box, ...]:
    """The boxes in 'boxes': [left, top, right, bottom] each, or an object with such a 'box' and its 'label'."""
    listed = row.get("boxes")
    if listed in (None, ""):
        return ()
    if not isinstance(listed, list):
        raise DataError(f"'boxes' should be a list of [left, top, right, bottom], found {shown(listed)}")
    return tuple(_box(entry, f"box {number} of 'boxes'") for number, entry in enumerate(listed, 1))


def _box(entry: Any, name: str) -> Box:
    from minigpt4.common.boxes import Box  # most annotations have none

    sides, label = entry, None
    if isinstance(entry, dict):
        if not entry.keys() <= {"box", "label"}:
            raise DataError(f"{name} should have a 'box' and perhaps a 'label' and nothing else, found {shown(entry)}")
        sides, label = entry.get("box"), text_of(entry, "label")
    if not (isinstance(sides, list) and len(sides) == 4 and all(type(side) in (int, float) for side in sides)):
        raise DataError(f"{name} should be [left, top, right, bottom], found {shown(sides)}")
    left, top, right, bottom = sides
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):  # false for NaN, too
        raise DataError(
            f"{name} should have 0 <= left < right <= 1 and 0 <= top < bottom <= 1, found {shown(sides)}; divide "
            "pixels by the image's width and height"
        )
    return Box(float(left), float(top), float(right), float(bottom), label or "")


def _boxes_in(texts: Iterable[str]) -> list[Box]:
    """The boxes written in texts, such as {<10><20><30><40>}.

    Raises:
        DataError: One is no box of an image.
    """
    marked = [text for text in texts if "{" in text and "<" in text]
    if not marked:  # as in most annotations
        return []
    from minigpt4.common.boxes import annotated_boxes

    return [box for text in marked for box in annotated_boxes(text)]


def _is_near(written: Box, box: Box) -> bool:
    """Whether a box in hundredths is this one, its sides rounded or cut off."""
    return all(abs(a - b) < ONE_HUNDREDTH for a, b in zip(written.sides, box.sides, strict=True))


def _choices(row: Mapping[str, Any], answers: Sequence[str]) -> tuple[str, ...]:
    """The different answers in 'choices', among which each right one must be."""
    if row.get("choices") in (None, ""):
        return ()
    choices = texts_of(row["choices"], "choices")
    if len(set(choices)) < max(2, len(choices)):
        raise DataError(f"'choices' should be at least two different texts, found {shown(choices)}")
    wrong = [answer for answer in answers if answer not in choices]
    if wrong:
        raise DataError(f"the answer {shown(wrong[0])} is not among 'choices', {shown(choices)}")
    return choices


def repeated_ids(records: Iterable[Record]) -> Iterator[RowProblem]:
    """Each record whose image id an earlier one has: an evaluation keeps predictions by it."""
    firsts: dict[str, str] = {}
    for record in records:
        if record.image_id not in firsts:
            firsts[record.image_id] = record.source
        else:
            yield RowProblem(
                record.source,
                f"the image id '{record.image_id}' is also that of {firsts[record.image_id]}, and predictions are "
                "kept by image id; give each row an id of its own, also where two rows ask about one image ('id' in "
                "JSONL and CSV; in a folder, the image's name without its suffix)",
            )


def require_object(row: Any) -> None:
    """Refuse a row that is not a JSON object.

    Raises:
        DataError: The message names the type found.
    """
    if not isinstance(row, dict):
        raise DataError(f"an object is expected, found {type(row).__name__}")


def text_of(row: Mapping[str, Any], column: str) -> str | None:
    """A column's text, as UTF-8 can encode it; None where it is absent or empty. Integers count as text.

    Raises:
        DataError: It is something else.
    """
    value = path_of(row, column)
    return None if value is None else replace_lone_surrogates(value)


def path_of(row: Mapping[str, Any], column: str) -> str | None:
    """As `text_of`, but unchanged: lone surrogates are the bytes of a file's name that are not UTF-8."""
    value = row.get(column)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise DataError(f"'{column}' should be a text, found {shown(value)}")
    return value if value.strip() else None


def texts_of(value: Any, column: str) -> tuple[str, ...]:
    """A list of texts, none of them empty, as UTF-8 can encode them.

    Raises:
        DataError: It is anything else.
    """
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise DataError(f"'{column}' should be a list of texts, found {shown(value)}")
    if not value or not all(item.strip() for item in value):
        raise DataError(f"'{column}' should hold at least one text and no empty one, found {shown(value)}")
    return tuple(map(replace_lone_surrogates, value))


def without_suffix(image: str) -> str:
    """The path of an image without its suffix, by which a record is named that has no id.

    Raises:
        DataError: It is no path of a file.
    """
    try:
        return replace_lone_surrogates(str(PurePosixPath(image).with_suffix("")))
    except ValueError as error:  # such as "." or "/"
        raise DataError(f"'image' should be the path of a file, found {shown(image)}") from error


def _answers(row: Mapping[str, Any]) -> tuple[str, ...]:
    column = _filled_column(row, ANSWER_COLUMNS)
    if column is None:
        raise DataError(_missing("answer", row))
    if column in ("answers", "captions"):
        return texts_of(row[column], column)
    text = text_of(row, column)
    if text is None:
        raise DataError(f"'{column}' is empty")
    return (text,)


def _filled_column(row: Mapping[str, Any], columns: tuple[str, ...]) -> str | None:
    """The column that a row fills, of several with the same meaning."""
    filled = [column for column in columns if row.get(column) not in (None, "")]
    if len(filled) > 1:
        raise DataError(f"'{filled[0]}' and '{filled[1]}' mean the same; give one of them")
    return filled[0] if filled else None


def _missing(column: str, row: Mapping[str, Any]) -> str:
    empty = [name for name in (ANSWER_COLUMNS if column == "answer" else [column]) if name in row]
    if empty:
        return f"'{empty[0]}' is empty"
    unknown = [name for name in row if isinstance(name, str) and name not in COLUMNS]
    hints = [f"'{name}': {hint}" for name in unknown if "mean" in (hint := did_you_mean(name, COLUMNS))]
    found = ", ".join(str(name)[:SHOWN] for name in row) or "nothing"
    return f"no '{column}'; found: {found}" + (f" ({'; '.join(hints)})" if hints else "")


class LazyRecords(Sequence[Record], ABC):
    """Records that are made when they are asked for, by number or slice."""

    @abstractmethod
    def record(self, number: int) -> Record:
        """The record with a number."""

    @overload
    def __getitem__(self, number: int) -> Record: ...

    @overload
    def __getitem__(self, number: slice) -> list[Record]: ...

    def __getitem__(self, number: int | slice) -> Record | list[Record]:
        if isinstance(number, slice):
            return [self.record(n) for n in range(*number.indices(len(self)))]
        return self.record(number)


class PackedRecords(LazyRecords):
    """Records that are unpacked when they are asked for.

    As objects they take three times the memory, and each loader worker would come to own a copy of all of them,
    since Python counts references inside of the objects.

    Args:
        records: records in order.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        packed, ends, codes = bytearray(), [0], []
        names: dict[str | None, int] = {}
        for record in records:
            packed += _pack(record)
            ends.append(len(packed))
            codes.append(names.setdefault(record.split, len(names)))
        self._bytes = np.frombuffer(packed, dtype=np.uint8)
        self._ends = np.array(ends, dtype=np.int64)
        self._codes = np.array(codes, dtype=np.int32)
        self._names = list(names)
        self._chosen = np.arange(len(codes))

    def __len__(self) -> int:
        return len(self._chosen)

    def record(self, number: int) -> Record:
        """One record, unpacked."""
        place = self._chosen[number]
        return _unpack(self._bytes[self._ends[place] : self._ends[place + 1]].data)

    def splits(self) -> Counter[str | None]:
        """Number of records of each split."""
        counts = np.bincount(self._codes[self._chosen], minlength=len(self._names))
        return Counter({name: int(count) for name, count in zip(self._names, counts, strict=True) if count})

    def of_splits(self, splits: Sequence[str]) -> PackedRecords:
        """The records of these splits, in the same order; they share the memory."""
        codes = [code for code, name in enumerate(self._names) if name in splits]
        part = PackedRecords()
        part._bytes, part._ends, part._codes, part._names = self._bytes, self._ends, self._codes, self._names
        part._chosen = self._chosen[np.isin(self._codes[self._chosen], codes)]
        return part


def _pack(record: Record) -> bytes:
    values: list[Any] = [getattr(record, name) for name in _NAMES]
    values[_BOXES] = tuple(tuple(getattr(box, side) for side in _SIDES) for box in record.boxes)
    return pickle.dumps(tuple(values), protocol=pickle.HIGHEST_PROTOCOL)


def _unpack(packed: memoryview) -> Record:
    values = dict(zip(_NAMES, pickle.loads(packed), strict=True))
    if values["boxes"]:
        from minigpt4.common.boxes import Box  # most annotations have none

        values["boxes"] = tuple(Box(*sides) for sides in values["boxes"])
    return Record(**values)

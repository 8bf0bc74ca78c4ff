"""Conversations about images in LLaVA's layout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minigpt4.common.boxes import annotated_boxes
from minigpt4.common.errors import DataError, shown
from minigpt4.common.registry import readers
from minigpt4.common.types import Record
from minigpt4.conversation.template import IMAGE_TAG, place_images
from minigpt4.datasets.readers.rows import (
    Reader,
    RowProblem,
    convert_rows,
    path_of,
    require_object,
    stream_json_list,
    text_of,
)

IMAGE_MARK = "<image>"
"""The place of an image in a text of this layout."""
ROLES = ("human", "gpt")


@readers.register("conversations")
class ConversationsReader(Reader):
    """A JSON list of `{"id", "image", "conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}, ...]}`.

    Every answer is trained on. `image` may be a list, and is missing for a text without images; without it, an `id` of
    which the first text has `<image>` names the file `ID.jpg`.
    """

    def read(self, path: Path) -> Iterator[Record | RowProblem]:
        """Every row of `path`, usable or not; errors as for `Reader.read`."""
        return convert_rows(_record, stream_json_list(path))


def _record(row: Any, source: str) -> Record:
    require_object(row)
    texts = _texts(row)
    images = _images(row, texts)
    if len(images) == 1 and sum(text.count(IMAGE_MARK) for text in texts) <= 1:
        # In front of the first question, as everywhere.
        texts = [text.replace(IMAGE_MARK, "") for text in texts]
    texts = [text.replace(IMAGE_MARK, IMAGE_TAG).strip() for text in texts]
    if not all(texts):
        raise DataError(f"a text is empty, of {shown(row['conversations'])}")
    questions, answers = texts[::2], texts[1::2]
    place_images(questions, len(images), source)
    boxes = [annotated_boxes(text) for text in texts]
    row_id = text_of(row, "id") or "row"
    return Record(
        image_id=f"{row_id}-{source.rpartition(' ')[2]}",  # ids are those of images, about which there are several rows
        images=images,
        answers=(answers[-1],),
        question=questions[-1],
        earlier=tuple(zip(questions[:-1], answers[:-1], strict=True)),
        split=text_of(row, "split"),
        source=source,
        boxes=tuple(boxes[-1]),
    )


def _texts(row: dict[str, Any]) -> list[str]:
    """Questions and answers in turn."""
    turns = row.get("conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise DataError(f"'conversations' should be a list of objects, found {shown(turns)}")
    roles = [turn.get("from") for turn in turns]
    if not turns or roles != [*ROLES] * (len(turns) // 2):
        raise DataError(f"'from' should be human and gpt in turn, and gpt at the end, found {shown(roles)}")
    return [text_of(turn, "value") or "" for turn in turns]


def _images(row: dict[str, Any], texts: list[str]) -> tuple[str, ...]:
    listed = row.get("image")
    if isinstance(listed, list):
        if not all(isinstance(path, str) and path.strip() for path in listed):
            raise DataError(f"'image' should be a path or a list of paths, found {shown(listed)}")
        return tuple(listed)
    image, row_id = path_of(row, "image"), path_of(row, "id")
    if image is None and row_id is not None and any(IMAGE_MARK in text for text in texts):
        image = f"{row_id}.jpg"
    return () if image is None else (image,)

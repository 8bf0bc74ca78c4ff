"""Texts with boxes in them: MiniGPT-v2's files made of Flickr30k Entities."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minigpt4.common.boxes import annotated_boxes
from minigpt4.common.errors import DataError, shown
from minigpt4.common.registry import readers
from minigpt4.common.types import Record
from minigpt4.datasets.readers.rows import Reader, RowProblem, convert_rows, require_object, stream_json_list, text_of


@readers.register("grounded")
class GroundedReader(Reader):
    """A JSON list in one of three forms; the image of image_id 2 is 2.jpg.

    `{"image_id", "grounded_caption"}`: a caption with the boxes of its phrases; there is no question, the dataset's
    prompts ask for it. `{"image_id", "caption", "output"}`: the phrases of a caption with their boxes; the caption is
    the question. `{"image_id", "phrase", "bbox"}`: the boxes of a phrase, which is the question.
    """

    def read(self, path: Path) -> Iterator[Record | RowProblem]:
        """Every row of `path`, usable or not; errors as for `Reader.read`."""
        return convert_rows(_record, stream_json_list(path))


def _record(row: Any, source: str) -> Record:
    require_object(row)
    image = text_of(row, "image_id")
    if image is None:
        raise DataError("no 'image_id'")
    question, answer = _turn(row)
    boxes = tuple(annotated_boxes(answer))
    if question is not None and not boxes:
        raise DataError(f"no box such as {{<10><20><30><40>}} in {shown(answer)}")
    # Several rows ask about one image.
    image_id = image if question is None else f"{image}-{source.rpartition(' ')[2]}"
    return Record(
        image_id=image_id,
        images=(f"{image}.jpg",),
        answers=(answer,),
        question=question,
        split=text_of(row, "split"),
        source=source,
        boxes=boxes,
    )


def _turn(row: dict[str, Any]) -> tuple[str | None, str]:
    """Question and answer of a row."""
    grounded = text_of(row, "grounded_caption")
    if grounded is not None:
        return None, grounded
    caption, output = text_of(row, "caption"), text_of(row, "output")
    if caption is not None and output is not None:
        return caption, output
    phrase, boxes = text_of(row, "phrase"), text_of(row, "bbox")
    if phrase is not None and boxes is not None:
        return phrase, f"<p>{phrase}</p> {boxes}"
    raise DataError("'grounded_caption', 'caption' and 'output', or 'phrase' and 'bbox' are expected")

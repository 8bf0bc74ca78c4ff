"""Flickr30k as `prepare_flickr30k.py` writes it, or as MiniGPT-4's guides publish it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minigpt4.common.errors import DataError
from minigpt4.common.registry import readers
from minigpt4.common.types import Record
from minigpt4.datasets.readers.rows import (
    Reader,
    RowProblem,
    convert_rows,
    path_of,
    read_json_list,
    require_object,
    text_of,
    texts_of,
)


@readers.register("flickr30k")
class Flickr30kReader(Reader):
    """A JSON list of `{"image_id", "grounded_caption"}`, the published form, or with captions, filename and split."""

    def read(self, path: Path) -> Iterator[Record | RowProblem]:
        """Every row of `path`, usable or not; errors as for `Reader.read`."""
        return convert_rows(_record, read_json_list(path))


def _record(row: Any, source: str) -> Record:
    require_object(row)
    image_id = text_of(row, "image_id")
    if image_id is None:
        raise DataError("no 'image_id'")
    return Record(
        image_id=image_id,
        images=(path_of(row, "filename") or f"{image_id}.jpg",),
        answers=_answers(row),
        split=text_of(row, "split"),
        source=source,
    )


def _answers(row: dict[str, Any]) -> tuple[str, ...]:
    joined = text_of(row, "grounded_caption")
    if row.get("captions") is None:
        if joined is None:
            raise DataError("no 'captions' and no 'grounded_caption'")
        return (joined,)
    captions = texts_of(row["captions"], "captions")
    if joined is not None and joined != " ".join(captions):
        raise DataError("'grounded_caption' is not 'captions' joined by spaces; remove the one that is out of date")
    return captions

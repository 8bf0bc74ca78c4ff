"""MiniGPT-4's second stage as it is published."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minigpt4.common.errors import DataError
from minigpt4.common.registry import readers
from minigpt4.common.types import Record
from minigpt4.datasets.readers.rows import Reader, RowProblem, read_text, text_of


@readers.register("cc_sbu_align")
class CcSbuAlignReader(Reader):
    """`{"annotations": [{"image_id", "caption"}, ...]}`; the picture of image_id 2 is 2.jpg."""

    def read(self, path: Path) -> Iterator[Record | RowProblem]:
        """Every annotation of `path`, usable or not; errors as for `Reader.read`."""
        for number, row in enumerate(_annotations(path), 1):
            source = f"{path}, annotation {number}"
            try:
                yield _record(row, source)
            except DataError as error:
                yield RowProblem(source, str(error))


def _annotations(path: Path) -> list[Any]:
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: broken JSON ({error.msg})") from error
    rows = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise DataError(f'{path}: {{"annotations": [{{"image_id": "2", "caption": "..."}}, ...]}} is expected')
    return rows


def _record(row: Any, source: str) -> Record:
    if not isinstance(row, dict):
        raise DataError(f"an object is expected, found {type(row).__name__}")
    image_id, caption = text_of(row, "image_id"), text_of(row, "caption")
    if image_id is None:
        raise DataError("no 'image_id'")
    if caption is None:
        raise DataError("no 'caption'")
    return Record(image_id=image_id, image=f"{image_id}.jpg", answers=(caption,), source=source)

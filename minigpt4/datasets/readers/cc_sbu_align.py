"""The annotations of MiniGPT-4's second stage, as published."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minigpt4.common.errors import DataError
from minigpt4.common.files import read_json
from minigpt4.common.registry import readers
from minigpt4.common.types import Record
from minigpt4.datasets.readers.rows import Reader, RowProblem, convert_rows, require_object, text_of


@readers.register("cc_sbu_align")
class CcSbuAlignReader(Reader):
    """`{"annotations": [{"image_id", "caption"}, ...]}`; the image of image_id 2 is 2.jpg."""

    def read(self, path: Path) -> Iterator[Record | RowProblem]:
        """Every annotation of `path`, usable or not; errors as for `Reader.read`."""
        content = read_json(path)
        rows = content.get("annotations") if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise DataError(f'{path}: {{"annotations": [{{"image_id": "2", "caption": "..."}}, ...]}} is expected')
        return convert_rows(_record, ((f"{path}, annotation {number}", row) for number, row in enumerate(rows, 1)))


def _record(row: Any, source: str) -> Record:
    require_object(row)
    image_id, caption = text_of(row, "image_id"), text_of(row, "caption")
    if image_id is None:
        raise DataError("no 'image_id'")
    if caption is None:
        raise DataError("no 'caption'")
    return Record(image_id=image_id, images=(f"{image_id}.jpg",), answers=(caption,), source=source)

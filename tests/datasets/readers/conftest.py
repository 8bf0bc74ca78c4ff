"""Reading annotations, and files to read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from minigpt4.common.registry import readers
from minigpt4.common.types import Record
from minigpt4.datasets.readers.rows import RowProblem

CATEGORIES = [{"id": 1, "name": "person"}, {"id": 2, "name": "dog"}]


def read(reader: str, path: Path) -> list[Record | RowProblem]:
    return list(readers.get(reader)().read(path))


def records_of(rows: Sequence[Record | RowProblem]) -> list[Record]:
    """The rows, all of which must be records."""
    assert all(isinstance(row, Record) for row in rows), rows
    return [row for row in rows if isinstance(row, Record)]


def write_coco(path: Path, annotations: list[dict[str, Any]], **image: Any) -> Path:
    """An instances file of one image, 200 x 100 pixels."""
    images = [{"id": 7, "file_name": "a.jpg", "width": 200, "height": 100} | image]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES}))
    return path


def box(category: int, *bbox: Any) -> dict[str, Any]:
    return {"image_id": 7, "category_id": category, "bbox": list(bbox)}


def save_table(folder: Path, name: str, text: str | None) -> None:
    """An image, and a table beside it."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), "white").save(folder / f"{name}.png")
    if text is not None:
        (folder / f"{name}.csv").write_text(text, encoding="utf-8")

"""Detection as text: COCO's boxes in pixels -> `{"dog1": [xmin, ymin, xmax, ymax], ...}` relative to the image."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from minigpt4.common.boxes import Box, box_of_pixels, is_number
from minigpt4.common.errors import DataError, shown
from minigpt4.common.files import read_json, replace_lone_surrogates
from minigpt4.common.registry import readers
from minigpt4.common.types import Record
from minigpt4.datasets.readers.rows import Reader, RowProblem, index_rows, path_of, text_of

DECIMALS = 3
"""Digits of a coordinate in the answer."""
EXPECTED = '{"images": [{"id", "file_name", "width", "height"}], "annotations": [{"image_id", "category_id", "bbox"}], '
EXPECTED += '"categories": [{"id", "name"}]}'
NamedBox = tuple[str, Sequence[float]]


@readers.register("coco_boxes")
class CocoBoxesReader(Reader):
    """COCO's instances file; an image without boxes has the answer `{}`."""

    def read(self, path: Path) -> Iterator[Record | RowProblem]:
        """Every image of `path`, usable or not; errors as for `Reader.read`."""
        images, annotations, names = read_instances(path)
        of_image: dict[Any, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
        for number, row in enumerate(annotations, 1):
            of_image[_id(row, "image_id")].append((number, row))
        firsts: dict[Any, int] = {}
        for number, image in enumerate(images, 1):
            source, image_id = f"{path}, image {number}", _id(image, "id")
            try:
                if image_id is not None and firsts.setdefault(image_id, number) != number:
                    raise DataError(f"the id {shown(image_id)} is already that of image {firsts[image_id]}")
                yield _record(image, of_image.pop(image_id, []), names, source)
            except DataError as error:
                yield RowProblem(source, str(error))
        for image_id, rows in of_image.items():
            yield RowProblem(f"{path}, annotation {rows[0][0]}", f"there is no image with the id {shown(image_id)}")


def boxes_text(boxes: Sequence[NamedBox], width: float, height: float) -> str:
    """The answer for named boxes.

    Objects of the same name are numbered from left to right, then from top to bottom, so that the answer does not
    depend on the order of the annotations.

    Args:
        boxes: (name, (x, y, width, height) in pixels); parts outside the image are cut off.
        width: width of the image in pixels.
        height: height of the image in pixels.
    """
    counts: Counter[str] = Counter()
    parts = []
    for name, (x, y, w, h) in sorted(boxes, key=lambda box: (box[0], *box[1])):
        counts[name] += 1
        corners = (x / width, y / height, (x + w) / width, (y + h) / height)
        places = ", ".join(f"{min(1.0, max(0.0, corner)):.{DECIMALS}f}" for corner in corners)
        parts.append(f"{json.dumps(f'{name}{counts[name]}', ensure_ascii=False)}: [{places}]")
    return "{" + ", ".join(parts) + "}"


def _id(row: dict[str, Any], key: str) -> Any:
    """An id, as a value that can be a key."""
    value = row.get(key)
    return shown(value) if isinstance(value, (list, dict)) else value


def read_instances(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[Any, str]]:
    """Images, annotations, and the names of the categories by id, of COCO's instances file.

    Raises:
        DataError: The file cannot be read, or has another form.
    """
    content = read_json(path)
    lists = [content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations", "categories")]
    if not all(isinstance(rows, list) and all(isinstance(row, dict) for row in rows) for rows in lists):
        raise DataError(f"{path}: {EXPECTED} is expected")
    images, annotations, categories = lists
    # Refuses two names of one id.
    index_rows(categories, "id", path)  # type: ignore[arg-type]
    return images, annotations, {_id(row, "id"): _category(row.get("name")) for row in categories}  # type: ignore


def _category(name: Any) -> str:
    if isinstance(name, str):
        return replace_lone_surrogates(name)
    return "" if name is None else shown(name)


def _record(
    image: dict[str, Any], rows: Sequence[tuple[int, dict[str, Any]]], names: dict[Any, str], source: str
) -> Record:
    file = path_of(image, "file_name")
    if file is None:
        raise DataError("no 'file_name'")
    width, height = image.get("width"), image.get("height")
    if not (is_number(width) and is_number(height) and width > 0 and height > 0):  # type: ignore[operator]
        raise DataError(f"'width' and 'height' should be pixels above 0, found {shown(width)} and {shown(height)}")
    named = [(_name(row, names, number), number, row.get("bbox")) for number, row in rows]
    boxes = sorted(
        (_box(bbox, number, width, height, name) for name, number, bbox in named),
        key=lambda box: (box.label, box.left, box.top, box.right, box.bottom),
    )
    text = boxes_text([(name, bbox) for name, _, bbox in named], width, height)  # type: ignore[misc, arg-type]
    return Record(
        image_id=_image_id(image) or replace_lone_surrogates(Path(file).stem),
        images=(file,),
        answers=(text,),
        split=text_of(image, "split"),
        source=source,
        boxes=tuple(boxes),
    )


def _image_id(image: dict[str, Any]) -> str | None:
    value = image.get("id")
    return str(value) if isinstance(value, float) else text_of(image, "id")


def _name(row: dict[str, Any], names: dict[Any, str], number: int) -> str:
    name = names.get(_id(row, "category_id"), "").strip()
    if not name:
        raise DataError(f"annotation {number}: no category has the id {shown(row.get('category_id'))}")
    return name


def _box(bbox: Any, number: int, width: Any, height: Any, name: str) -> Box:
    try:
        return box_of_pixels(bbox, width, height, name)
    except DataError as error:
        raise DataError(f"annotation {number}: {error}") from error

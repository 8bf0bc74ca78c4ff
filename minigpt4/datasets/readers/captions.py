"""Captioned images in the published layouts of COCO, NoCaps and TextCaps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from minigpt4.common.errors import DataError, shown
from minigpt4.common.files import read_json
from minigpt4.common.registry import readers
from minigpt4.common.types import Record
from minigpt4.datasets.readers.rows import (
    Reader,
    RowProblem,
    convert_rows,
    id_of,
    index_rows,
    is_json_list,
    path_of,
    require_object,
    stream_json_list,
    text_of,
    texts_of,
)

EXPECTED = (
    '[{"image", "caption"}, ...], {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}, '
    '{"images": [{"filename", "sentences", "split"}]} or {"data": [{"image_id", "caption_str"}]}'
)
RESTVAL = "restval"
"""Karpathy's split of COCO's validation images that are trained on."""


@readers.register("captions")
class CaptionsReader(Reader):
    """A record for each image; its captions are the answers, also where they stand on several rows.

    Layouts: COCO's own (NoCaps has it too, whose domains become kinds), Karpathy's splits (`dataset_coco.json`, or a
    list of `{"image", "caption"}` for each split), and TextCaps.
    """

    def read(self, path: Path) -> Iterator[Record | RowProblem]:
        """Every image of `path`, then every row that cannot be used; errors as for `Reader.read`."""
        merged: dict[tuple[str, ...], Record] = {}
        problems = []
        for row in convert_rows(*_rows(path)):
            if isinstance(row, RowProblem):
                problems.append(row)
            elif row.images in merged:
                first = merged[row.images]
                merged[row.images] = replace(first, answers=first.answers + row.answers)
            else:
                merged[row.images] = row
        yield from merged.values()
        yield from problems


Converter = Callable[[Any, str], Record]
Rows = Iterator[tuple[str, Any]]


def _rows(path: Path) -> tuple[Converter, Rows]:
    """What makes a record of a row, and the rows."""
    if is_json_list(path):
        return _of_list, stream_json_list(path)
    content = read_json(path)
    lists = content if isinstance(content, dict) else {}
    if isinstance(lists.get("annotations"), list):
        return _of_coco(path, lists.get("images")), _numbered(path, "annotation", lists["annotations"])
    if isinstance(lists.get("images"), list):
        return _of_karpathy, _numbered(path, "image", lists["images"])
    if isinstance(lists.get("data"), list):
        return _of_textcaps, _numbered(path, "entry", lists["data"])
    raise DataError(f"{path}: {EXPECTED} is expected")


def _numbered(path: Path, name: str, rows: list[Any]) -> Rows:
    return ((f"{path}, {name} {number}", row) for number, row in enumerate(rows, 1))


def _of_list(row: Any, source: str) -> Record:
    require_object(row)
    image = path_of(row, "image")
    if image is None:
        raise DataError("no 'image'")
    captions = texts_of(row["caption"], "caption") if isinstance(row.get("caption"), list) else _text(row, "caption")
    return _record(row, image, captions, source)


def _of_coco(path: Path, images: Any) -> Converter:
    """The converter of annotations, given the list that their image ids are from."""
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
        raise DataError(f"{path}: {EXPECTED} is expected")
    by_id = index_rows(images, "id", path)

    def convert(row: Any, source: str) -> Record:
        require_object(row)
        image = by_id.get(id_of(row.get("image_id")))
        file = None if image is None else path_of(image, "file_name")
        if image is None or file is None:
            raise DataError(f"no image with a 'file_name' has the id {shown(row.get('image_id'))}")
        record = _record(row, file, _text(row, "caption"), source)
        return replace(record, kind=text_of(image, "domain") or "")

    return convert


def _of_karpathy(row: Any, source: str) -> Record:
    require_object(row)
    file, folder, sentences = path_of(row, "filename"), path_of(row, "filepath"), row.get("sentences")
    if file is None:
        raise DataError("no 'filename'")
    if not isinstance(sentences, list) or not all(isinstance(sentence, dict) for sentence in sentences):
        raise DataError(f"'sentences' should be a list of objects, found {shown(sentences)}")
    captions = texts_of([sentence.get("raw") for sentence in sentences], "sentences")
    split = text_of(row, "split")
    row = {"image_id": row.get("cocoid", row.get("imgid")), "split": "train" if split == RESTVAL else split}
    return _record(row, f"{folder}/{file}" if folder else file, captions, source)


def _of_textcaps(row: Any, source: str) -> Record:
    require_object(row)
    image_id = text_of(row, "image_id")
    if image_id is None:
        raise DataError("no 'image_id'")
    row = row | {"split": row.get("set_name")}
    return _record(row, f"{image_id}.jpg", _text(row, "caption_str"), source)


def _text(row: dict[str, Any], column: str) -> tuple[str, ...]:
    text = text_of(row, column)
    if text is None:
        raise DataError(f"no '{column}'")
    return (text,)


def _record(row: dict[str, Any], image: str, captions: tuple[str, ...], source: str) -> Record:
    return Record(
        image_id=text_of(row, "image_id") or image,
        images=(image,),
        answers=captions,
        split=text_of(row, "split"),
        source=source,
    )

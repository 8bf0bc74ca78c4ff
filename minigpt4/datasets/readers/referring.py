"""Expressions for objects and their boxes: RefCOCO, RefCOCO+ and RefCOCOg as published."""

from __future__ import annotations

import pickle
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt4.common.boxes import Box, box_of_pixels
from minigpt4.common.errors import DataError, one_line, shown
from minigpt4.common.files import replace_lone_surrogates
from minigpt4.common.registry import readers
from minigpt4.common.types import Record
from minigpt4.datasets.readers.coco_boxes import read_instances
from minigpt4.datasets.readers.rows import Reader, RowProblem, id_of, index_rows, path_of, require_object, text_of

INSTANCES = "instances.json"
"""The objects, in COCO's layout, beside the file of expressions."""
EXPECTED = '[{"ref_id", "ann_id", "image_id", "split", "sentences": [{"sent_id", "raw"}]}, ...]'


@dataclass(frozen=True, slots=True)
class Referred:
    """An object, and what people called it.

    Attributes:
        ref_id: id of the object.
        image: path of its image.
        box: its box, without label.
        sentences: (id, text) of each expression.
        split: split of the object.
        source: where it stands.
    """

    ref_id: str
    image: str
    box: Box
    sentences: tuple[tuple[str, str], ...]
    split: str | None
    source: str


class ReferringReader(Reader):
    """`refs(unc).p` or another file of expressions, with `instances.json` beside it."""

    def read(self, path: Path) -> Iterator[Record | RowProblem]:
        """The records of every object of `path`, usable or not; errors as for `Reader.read`."""
        rows = unpickle(path)
        if not isinstance(rows, list):
            raise DataError(f"{path}: {EXPECTED} is expected, found {type(rows).__name__}")
        images, annotations, _ = read_instances(path.with_name(INSTANCES))
        image_of = index_rows(images, "id", path.with_name(INSTANCES))
        object_of = index_rows(annotations, "id", path.with_name(INSTANCES))
        for number, row in enumerate(rows, 1):
            source = f"{path}, reference {number}"
            try:
                yield from self.records(_referred(row, source, image_of, object_of))
            except DataError as error:
                yield RowProblem(source, str(error))

    @abstractmethod
    def records(self, referred: Referred) -> list[Record]:
        """The records of an object."""


@readers.register("refer")
class ReferReader(ReferringReader):
    """A record for each expression: where is it? The answer is a box."""

    def records(self, referred: Referred) -> list[Record]:
        """The records of an object."""
        return [
            Record(
                image_id=sentence_id,
                images=(referred.image,),
                answers=(referred.box.text,),
                question=sentence,
                split=referred.split,
                source=referred.source,
                boxes=(referred.box,),
            )
            for sentence_id, sentence in referred.sentences
        ]


@readers.register("identify")
class IdentifyReader(ReferringReader):
    """A record for each object: what is in this box? Any of the expressions is an answer."""

    def records(self, referred: Referred) -> list[Record]:
        """The record of an object."""
        return [
            Record(
                image_id=referred.ref_id,
                images=(referred.image,),
                answers=tuple(sentence for _, sentence in referred.sentences),
                question=referred.box.text,
                split=referred.split,
                source=referred.source,
                boxes=(referred.box,),
            )
        ]


def unpickle(path: Path) -> Any:
    """The texts, numbers, lists and mappings in a pickle, which may not name anything else, so that none of it runs.

    Raises:
        DataError: The file cannot be read, is no pickle, or names a class or function.
    """
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file, encoding="utf-8", errors="replace").load()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # bytes that are no pickle make it raise nearly anything
        raise DataError(f"{path} is no pickle of plain data ({one_line(error)})") from error


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}; only texts, numbers, lists and mappings are read")


def _referred(
    row: Any, source: str, image_of: Mapping[str, Mapping[str, Any]], object_of: Mapping[str, Mapping[str, Any]]
) -> Referred:
    require_object(row)
    ref_id, sentences = text_of(row, "ref_id"), row.get("sentences")
    if ref_id is None:
        raise DataError("no 'ref_id'")
    found, image = (rows.get(id_of(row.get(key))) for rows, key in ((object_of, "ann_id"), (image_of, "image_id")))
    if found is None:
        raise DataError(f"{INSTANCES} has no annotation {shown(row.get('ann_id'))}")
    file = path_of(image, "file_name") if image is not None else None
    if image is None or file is None:
        raise DataError(f"{INSTANCES} has no image {shown(row.get('image_id'))} with a 'file_name'")
    if id_of(found.get("image_id", row.get("image_id"))) != id_of(row.get("image_id")):
        raise DataError(
            f"it is about image {shown(row.get('image_id'))}, but annotation {shown(row.get('ann_id'))} of {INSTANCES} "
            f"about image {shown(found['image_id'])}"
        )
    if not isinstance(sentences, list) or not sentences or not all(isinstance(item, dict) for item in sentences):
        raise DataError(f"'sentences' should be a list of objects, found {shown(sentences)}")
    named = []
    for sentence in sentences:
        sentence_id, text = text_of(sentence, "sent_id"), text_of(sentence, "raw") or text_of(sentence, "sent")
        if sentence_id is None or text is None:
            raise DataError(f"a sentence should have 'sent_id' and 'raw', found {shown(sentence)}")
        named.append((sentence_id, replace_lone_surrogates(text.strip())))
    box = box_of_pixels(found.get("bbox"), image.get("width"), image.get("height"))
    return Referred(ref_id, file, box, tuple(named), text_of(row, "split"), source)

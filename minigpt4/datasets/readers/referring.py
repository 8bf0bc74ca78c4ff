"""Expressions for objects and their boxes: RefCOCO, RefCOCO+ and RefCOCOg as published."""

from __future__ import annotations

import pickle
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt4.common.boxes import Box, box_of_pixels
from minigpt4.common.errors import DataError, one_line, shown
from minigpt4.common.files import replace_lone_surrogates
from minigpt4.common.registry import readers
from minigpt4.common.types import Record
from minigpt4.datasets.readers.coco_boxes import read_instances
from minigpt4.datasets.readers.rows import Reader, RowProblem, path_of, require_object, text_of

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
        image_of = {shown(image.get("id")): image for image in images}
        object_of = {shown(row.get("id")): row for row in annotations}
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


def _referred(row: Any, source: str, image_of: dict[str, Any], object_of: dict[str, Any]) -> Referred:
    require_object(row)
    ref_id, sentences = text_of(row, "ref_id"), row.get("sentences")
    if ref_id is None:
        raise DataError("no 'ref_id'")
    found, image = object_of.get(shown(row.get("ann_id"))), image_of.get(shown(row.get("image_id")))
    if found is None:
        raise DataError(f"{INSTANCES} has no annotation {shown(row.get('ann_id'))}")
    file = path_of(image, "file_name") if image is not None else None
    if image is None or file is None:
        raise DataError(f"{INSTANCES} has no image {shown(row.get('image_id'))} with a 'file_name'")
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

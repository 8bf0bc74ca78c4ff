"""Texts about images that are judged by yes or no: VSR (arXiv:2205.00363) and Hateful Memes (arXiv:2005.04790)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from minigpt4.common.errors import DataError, shown
from minigpt4.common.files import parse_json, read_lines
from minigpt4.common.registry import readers
from minigpt4.common.types import Record
from minigpt4.datasets.readers.rows import Reader, RowProblem, convert_rows, path_of, require_object, text_of

_RELATIONS = {
    "Adjacency": "adjacent to, alongside, at the side of, at the right side of, at the left side of, attached to, "
    "at the back of, ahead of, against, at the edge of",
    "Directional": "off, past, toward, down, deep down, up, away from, along, around, from, into, to, across, "
    "across from, through, down from",
    "Orientation": "facing, facing away from, parallel to, perpendicular to",
    "Projective": "on top of, beneath, beside, behind, left of, right of, under, in front of, below, above, over, "
    "in the middle of",
    "Proximity": "by, close to, near, far from, far away from",
    "Topological": "connected to, detached from, has as a part, part of, contains, within, at, on, in, with, "
    "surrounding, consists of, out of, between, inside, outside, touching",
    "Unallocated": "beyond, next to, opposite to, after, among, enclosed by",
}
CATEGORIES = {relation: name for name, listed in _RELATIONS.items() for relation in listed.split(", ")}
"""VSR's relation -> its category. Source: `analysis_scripts/rel_meta_category_dict.txt` of
cambridgeltl/visual-spatial-reasoning, where "among" comes twice and the last one counts."""


class StatementReader(Reader):
    """JSON lines with an image, a text, and 1 or 0 as what is said of them."""

    image: ClassVar[str]
    text: ClassVar[str]
    judgements: ClassVar[tuple[str, str]]
    """The answers where the label is 0 and 1."""
    choices: ClassVar[bool] = False
    """Whether the two are offered to choose from."""

    def read(self, path: Path) -> Iterator[Record | RowProblem]:
        """Every line of `path`, usable or not; errors as for `Reader.read`."""
        lines = ((f"{path}, line {number}", (f"{path.stem}-{number}", line)) for number, line in read_lines(path))
        return convert_rows(self._record, lines)

    def _record(self, named: tuple[str, str], source: str) -> Record:
        name, line = named
        row = parse_json(line)
        require_object(row)
        image, text, label = path_of(row, self.image), text_of(row, self.text), row.get("label")
        if image is None or text is None:
            raise DataError(f"no '{self.image if image is None else self.text}'")
        if label is None:
            raise DataError("no 'label'; the test files of a challenge lack it, so take those of another split")
        if type(label) is not int or label not in (0, 1):
            raise DataError(f"'label' should be 0 or 1, found {shown(label)}")
        relation = text_of(row, "relation") or ""
        return Record(
            image_id=text_of(row, "id") or name,
            images=(image,),
            answers=(self.judgements[label],),
            question=text,
            source=source,
            kind=CATEGORIES.get(relation, relation),
            choices=self.judgements if self.choices else (),
        )


@readers.register("vsr")
class VsrReader(StatementReader):
    """`{"image", "caption", "label", "relation"}`: captions that are true of their image (1), or false.

    The kind is the relation's category; a relation that is in none is a kind of its own. There are no ids: a caption is
    named by its file and line.
    """

    image, text, judgements = "image", "caption", ("false", "true")


@readers.register("vsr_choices")
class VsrChoicesReader(VsrReader):
    """As `vsr`, with true and false to choose from."""

    choices = True


@readers.register("hateful_memes")
class HatefulMemesReader(StatementReader):
    """`{"id", "img", "text", "label"}`: images with the words on them, which are hateful (1) or not."""

    image, text, judgements = "img", "text", ("no", "yes")


@readers.register("hateful_memes_choices")
class HatefulMemesChoicesReader(HatefulMemesReader):
    """As `hateful_memes`, with yes and no to choose from."""

    choices = True

"""A folder of pictures, each with its caption in a text file of the same name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from minigpt4.common.errors import DataError
from minigpt4.common.files import IMAGE_SUFFIXES
from minigpt4.common.registry import readers
from minigpt4.common.types import Record
from minigpt4.datasets.readers.rows import Reader, RowProblem, read_text

SPLITS = frozenset({"train", "val", "test"})


@readers.register("folder")
class FolderReader(Reader):
    """`cat.jpg` beside `cat.txt`, in sub-folders too; those called train, val and test at the top are splits.

    Each line of the text file is one caption.
    """

    folder: ClassVar[bool] = True

    def read(self, path: Path) -> Iterator[Record | RowProblem]:
        """Every picture below `path` in the order of their names, usable or not."""
        # Whatever the file system's order is, records keep theirs.
        for image in sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES):
            yield _record(path, image)


def _record(root: Path, image: Path) -> Record | RowProblem:
    relative = image.relative_to(root)
    text_file = image.with_suffix(".txt")
    if not text_file.is_file():
        return RowProblem(str(image), f"no caption; write it into {text_file.name} beside the picture")
    try:
        answers = tuple(line.strip() for line in read_text(text_file).split("\n") if line.strip())
    except DataError as error:
        return RowProblem(str(image), str(error))
    if not answers:
        return RowProblem(str(text_file), "the caption is empty")
    split = relative.parts[0] if len(relative.parts) > 1 and relative.parts[0] in SPLITS else None
    return Record(
        image_id=str(relative.with_suffix("").as_posix()),
        image=relative.as_posix(),
        answers=answers,
        split=split,
        source=str(text_file),
    )

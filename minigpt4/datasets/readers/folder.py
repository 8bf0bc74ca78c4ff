"""A folder of images, each with its caption in a text file of the same name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from minigpt4.common.errors import DataError
from minigpt4.common.files import IMAGE_SUFFIXES, read_lines, replace_lone_surrogates
from minigpt4.common.registry import readers
from minigpt4.common.types import Record
from minigpt4.datasets.readers.rows import Reader, RowProblem

SPLITS = frozenset({"train", "val", "test"})
"""Sub-folders whose images belong to the split of that name."""


@readers.register("folder")
class FolderReader(Reader):
    """`cat.jpg` beside `cat.txt`, in sub-folders too; those at the top called train, val and test are splits.

    Each line of the text file is one caption.
    """

    folder: ClassVar[bool] = True

    def read(self, path: Path) -> Iterator[Record | RowProblem]:
        """Every image below `path` in the order of the names, usable or not."""
        for image in image_files(path):
            file = image.with_suffix(".txt")
            if not file.is_file():
                yield RowProblem(str(image), f"no caption; write it into {file.name} beside the image")
                continue
            try:
                captions = [line.strip() for _, line in read_lines(file)]
            except DataError as error:
                yield RowProblem(str(image), str(error))
                continue
            yield (
                folder_record(path, image, captions, file)
                if captions
                else RowProblem(str(file), "the caption is empty")
            )


def image_files(root: Path) -> list[Path]:
    """The images below a folder, sorted, because file systems list them in different orders.

    Raises:
        DataError: A folder cannot be read; its images would silently be missing.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror or error}") from error

    found = (
        Path(folder, name) for folder, folders, files in os.walk(root, onerror=refuse) for name in (*folders, *files)
    )
    return sorted(file for file in found if file.suffix.lower() in IMAGE_SUFFIXES)


def folder_record(root: Path, image: Path, answers: Sequence[str], source: Path) -> Record:
    """The record of an image below `root`, named after its path there.

    Args:
        root: folder of the dataset.
        image: path of the image.
        answers: texts to train on.
        source: file they are from.
    """
    relative = image.relative_to(root)
    return Record(
        image_id=replace_lone_surrogates(relative.with_suffix("").as_posix()),
        images=(relative.as_posix(),),
        answers=tuple(answers),
        split=relative.parts[0] if len(relative.parts) > 1 and relative.parts[0] in SPLITS else None,
        source=str(source),
    )

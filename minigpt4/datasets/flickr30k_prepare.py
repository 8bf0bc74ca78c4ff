"""Flickr30k's annotation table (raw, sentids, split, filename, img_id) -> one JSON record an image."""

from __future__ import annotations

import argparse
import glob
import json
import os
import shlex
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from minigpt4.common.cli import command, exit_on_error, require_files
from minigpt4.common.errors import DataError, counted, first_few
from minigpt4.common.files import DATA_VARIABLE, remove_temporary_files, write_text, writing
from minigpt4.common.logging import set_up_logging, track

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("raw", "split", "filename")
"""Columns that a table must have."""
SPLITS = ("train", "val", "test")
IMAGE_FOLDERS = ("images", "flickr30k-images")
"""Default names of the image folder; the second is that of the published archive."""
TRAINING = "train_configs/minigpt4_flickr_finetune.yaml"
"""Configuration that trains on the prepared file."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What was prepared.

    Attributes:
        counts: records written of each split.
        missing: file names that are annotated but not in the image folder.
        captions: fewest and most captions of a record.
    """

    counts: dict[str, int]
    missing: list[str]
    captions: tuple[int, int]


def prepare(annotations: Path, images: Path | None, out: Path) -> Summary:
    """Write the records of `annotations` whose images are in the folder `images` (None: all of them) to `out`.

    Raises:
        DataError: A file is missing or malformed (the message names the row), none of the images is there, or `out`
            cannot be written.
    """
    if images is not None and not images.is_dir():
        raise DataError(
            f"image folder {images} does not exist; name it by --images DIR, set the environment variable "
            f"{DATA_VARIABLE} to the folder that holds flickr30k/images, or skip the check by --no-image-check"
        )
    records, missing = [], []
    for record in read_records(annotations):
        if images is None or os.path.isfile(images / record["filename"]):  # also of names that no file can have
            records.append(record)
        else:
            missing.append(record["filename"])
    if not records:
        raise DataError(f"{images} holds none of the {len(missing):,} images, such as {missing[0]}; give --images DIR")
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    with writing(out):
        remove_temporary_files(out.parent, glob.escape(out.name))
        write_text(out, f"[\n{lines}\n]\n")
    splits = Counter(record["split"] for record in records)
    captions = [len(record["captions"]) for record in records]
    return Summary({split: splits[split] for split in SPLITS}, missing, (min(captions), max(captions)))


def read_records(annotations: Path) -> Iterator[dict[str, Any]]:
    """The records of an annotation table.

    Raises:
        DataError: The file is missing or malformed; the message names the row as a spreadsheet counts, header first.
    """
    table = _read_table(annotations)
    rows_of: dict[str, int] = {}
    cells = zip(*(table[column] for column in table.columns), strict=True)
    for number, values in enumerate(track(cells, "Flickr30k", "images", len(table)), 2):
        row = dict(zip(table.columns, values, strict=True))
        if not any(isinstance(value, str) and value.strip() for value in values):
            continue
        try:
            record = _record(row)
            filename = record["filename"]
            if filename in rows_of:
                raise DataError(f"'{filename}' is already in row {rows_of[filename]}")
        except DataError as error:
            raise DataError(f"{annotations}, row {number}: {error}") from error
        rows_of[filename] = number
        yield record
    if not rows_of:
        raise DataError(f"{annotations} holds a header and no row")


def _read_table(annotations: Path) -> pd.DataFrame:
    if not annotations.is_file():
        raise DataError(
            f"annotation file {annotations} does not exist; name it by --annotations CSV, or set the environment "
            f"variable {DATA_VARIABLE} to the folder that holds flickr30k/flickr_annotations_30k.csv"
        )
    import pandas as pd

    try:
        # Cells are kept as text and blank lines as rows, so that row numbers are those of a spreadsheet.
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # of cells beyond the header's, which are lost
            table = pd.read_csv(annotations, dtype=str, na_filter=False, skip_blank_lines=False, index_col=False)
    except (ValueError, OSError, pd.errors.ParserWarning) as error:
        raise DataError(f"{annotations} cannot be read as CSV: {' '.join(str(error).split())}") from error
    for column in COLUMNS:
        if column not in table.columns:
            found = ", ".join(map(str, table.columns))
            raise DataError(f"{annotations}: no column '{column}'; the header has {found}")
    return table


def _record(row: dict[str, Any]) -> dict[str, Any]:
    captions = _list(row, "raw", str)
    if not captions or not all(caption.strip() for caption in captions):
        raise DataError("'raw' should hold at least one caption and no empty one")
    if row["split"] not in SPLITS:
        raise DataError(f"unknown split '{row['split']}'; known: {', '.join(SPLITS)}")
    if not isinstance(row["filename"], str) or not row["filename"].strip():
        raise DataError("'filename' is empty")
    record = {
        "image_id": Path(row["filename"]).stem,
        "grounded_caption": " ".join(captions),
        "captions": captions,
        "filename": row["filename"],
        "split": row["split"],
    }
    if row.get("sentids"):
        record["sentids"] = _list(row, "sentids", int)
    return record


def _list(row: dict[str, Any], column: str, kind: type) -> list[Any]:
    what = "texts" if kind is str else "integers"
    try:
        values = json.loads(row[column])
    except (ValueError, TypeError, RecursionError) as error:
        place = f"{error.msg} at character {error.pos}" if isinstance(error, json.JSONDecodeError) else str(error)
        reason = "empty" if isinstance(error, TypeError) else place
        raise DataError(f"broken JSON in '{column}' ({reason}); a list of {what} is expected") from error
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise DataError(f"'{column}' should be a list of {what}, found {row[column]:.80}")
    return values


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    root = Path(os.environ.get(DATA_VARIABLE, "data")) / "flickr30k"
    folders = [root / name for name in IMAGE_FOLDERS]
    images = next((folder for folder in folders if folder.is_dir()), folders[0])
    parser = argparse.ArgumentParser(
        prog="minigpt4 prepare",
        description="Turn Flickr30k's annotations into the JSON that training and evaluation read.",
    )
    table = root / "flickr_annotations_30k.csv"
    parser.add_argument(
        "--annotations", type=Path, default=table, metavar="CSV", help="the annotation table (default: %(default)s)"
    )
    parser.add_argument(
        "--images", type=Path, default=images, metavar="DIR", help="folder of the images (default: %(default)s)"
    )
    out = root / "flickr30k.json"
    parser.add_argument(
        "--out", type=Path, default=out, metavar="JSON", help="the file to write (default: %(default)s)"
    )
    parser.add_argument("--no-image-check", action="store_true", help="keep records whose image is missing")
    arguments = parser.parse_args(argv)
    arguments.is_default = arguments.out == out and arguments.images == folders[0]
    return arguments


@exit_on_error()
def main(argv: Sequence[str] | None = None) -> None:
    """The command line of `prepare_flickr30k.py`."""
    arguments = _arguments(argv)
    set_up_logging()
    images = None if arguments.no_image_check else arguments.images
    folder = [] if images is None else [("--images", str(images))]
    require_files([("--annotations", str(arguments.annotations)), *folder])
    summary = prepare(arguments.annotations, images, arguments.out)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    splits = ", ".join(f"{split} {count:,}" for split, count in summary.counts.items())
    low, high = summary.captions
    each = counted(low, "captions") if low == high else f"{low} to {high} captions"
    console.print(f"wrote {arguments.out}: {counted(sum(summary.counts.values()), 'images')} ({splits}), {each} each")
    if summary.missing:
        console.print(
            f"left out, not in {images}: {counted(len(summary.missing), 'images')} ({first_few(summary.missing)})"
        )
    paths = {"annotations": arguments.out, "images": arguments.images}
    options = ["--options", *(f"datasets.flickr30k.{key}={path}" for key, path in paths.items())]
    more = [] if arguments.is_default else options
    console.print(f"to check them:           {command('check', 'flickr30k', *more)}")
    if arguments.is_default:
        console.print(f"to train on them:        {command('train', '--cfg-path', TRAINING)}")
    else:
        console.print(f"to use them in any run:  {shlex.join(options)}")

"""A dataset's configuration -> its records, with every row in a split."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from minigpt4.common.errors import ConfigError, DataError
from minigpt4.common.paths import existing
from minigpt4.common.registry import readers
from minigpt4.common.schema import DatasetConfig
from minigpt4.common.types import Record
from minigpt4.datasets.readers.rows import Reader, RowProblem

DATA_VARIABLE = "MINIGPT4_DATA"


class MissingSplitError(ConfigError):
    """A dataset has no record in a split that was asked for."""


def annotations_path(name: str, cfg: DatasetConfig) -> Path:
    """The annotation file (or folder) of dataset `name`.

    Raises:
        ConfigError: It does not exist.
    """
    reader: type[Reader] = readers.get(cfg.reader)
    path = cfg.annotations or (cfg.images if reader.folder else None)
    return existing(path, f"datasets.{name}.annotations", DATA_VARIABLE, folder=reader.folder)


def images_folder(name: str, cfg: DatasetConfig) -> Path:
    """The folder that relative image paths start at: `images`, or where the annotations lie.

    Raises:
        ConfigError: It does not exist.
    """
    if cfg.images:
        return existing(cfg.images, f"datasets.{name}.images", DATA_VARIABLE, folder=True)
    annotations = annotations_path(name, cfg)
    return annotations if annotations.is_dir() else annotations.parent


def read_rows(name: str, cfg: DatasetConfig) -> Iterator[Record | RowProblem]:
    """Every row of dataset `name`, usable or not; rows without a split are given one (`val_fraction`).

    Raises:
        ConfigError: The annotations do not exist, or the reader is unknown.
        DataError: The annotations as a whole cannot be read.
    """
    if not 0 <= cfg.val_fraction < 1:
        raise ConfigError(f"datasets.{name}.val_fraction: {cfg.val_fraction} should be at least 0 and below 1")
    reader: Reader = readers.get(cfg.reader)()
    for row in reader.read(annotations_path(name, cfg)):
        if isinstance(row, Record) and row.split is None:
            yield replace(row, split=_split_of(row.image, cfg.val_fraction))
        else:
            yield row


def load_records(name: str, cfg: DatasetConfig) -> list[Record]:
    """All rows of dataset `name`.

    Raises:
        ConfigError: As for `read_rows`.
        DataError: As for `read_rows`; or a row cannot be used, or there is none.
    """
    rows = list(read_rows(name, cfg))
    problems = [row for row in rows if isinstance(row, RowProblem)]
    if problems:
        others = f" (and {len(problems) - 1} more rows)" if len(problems) > 1 else ""
        raise DataError(f"{problems[0]}{others}; python -m minigpt4.datasets.check names every bad row")
    if not rows:
        raise DataError(f"datasets.{name}.annotations: {annotations_path(name, cfg)} holds no record")
    return [row for row in rows if isinstance(row, Record)]


def select_splits(name: str, records: Sequence[Record], splits: Sequence[str]) -> list[Record]:
    """The records of the splits named, in the order of the annotations.

    Raises:
        MissingSplitError: One of them has no record; the message lists those that have.
    """
    counts = Counter(record.split for record in records)
    for split in splits:
        if not counts[split]:
            known = ", ".join(f"{known} ({count:,})" for known, count in counts.items())
            hint = f", or set datasets.{name}.val_fraction" if split == "val" else ""
            raise MissingSplitError(
                f"datasets.{name}: there is no split '{split}'; the annotations have {known}: name one of these in "
                f"run.train_splits, run.valid_splits or evaluation.split{hint}"
            )
    wanted = set(splits)
    return [record for record in records if record.split in wanted]


def _split_of(image: str, val_fraction: float) -> str:
    """`val` for a fixed share of names, so that a picture stays where it is when rows are added."""
    share = int.from_bytes(hashlib.sha256(image.encode()).digest()[:8], "big") / 2**64
    return "val" if share < val_fraction else "train"

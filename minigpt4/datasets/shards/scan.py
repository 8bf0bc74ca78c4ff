"""One tar file -> the places of its samples.

Members that follow each other and share their name up to the first dot are one sample: a picture, and a caption in
`.txt` or under "caption" in `.json`.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

PICTURES = ("jpg", "jpeg", "png", "webp")
CAPTIONS = ("txt", "json")
"""The first of them that a sample has is read; img2dataset writes both, and txt is the shorter one."""
ROW = np.dtype([("picture", "<i8"), ("picture_bytes", "<i4"), ("caption", "<i8"), ("caption_bytes", "<i4")])
"""Where a sample's two members begin, headers included, and how many bytes they take up to the end of their content."""
LONGEST = 2**31 - 1
BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardScan:
    """What a shard holds.

    Attributes:
        rows: A row for each sample with picture and caption, of type ROW.
        without_caption: Samples that have a picture only; they are left out.
        without_picture: Samples that have none; they are left out.
        damage: What is wrong with the file; the rows are those before the damage.
    """

    rows: np.ndarray
    without_caption: int
    without_picture: int
    damage: str | None = None


@dataclass(frozen=True, slots=True)
class _Member:
    key: str
    suffix: str
    start: int
    length: int


def scan(path: Path) -> ShardScan:
    """Look through a shard's headers; the contents are passed over.

    Raises:
        OSError: The file cannot be opened.
    """
    damage: list[str] = []
    rows: list[tuple[int, int, int, int]] = []
    lacking = {"caption": 0, "picture": 0}
    with path.open("rb") as file:
        for _, group in groupby(_members(file, damage), key=lambda member: member.key):
            members = {member.suffix: member for member in group}
            picture = next((members[s] for s in PICTURES if s in members), None)
            caption = next((members[s] for s in CAPTIONS if s in members), None)
            if picture and caption:
                rows.append((picture.start, picture.length, caption.start, caption.length))
            elif picture or caption:
                lacking["caption" if picture else "picture"] += 1
    return ShardScan(
        rows=np.array(rows, dtype=ROW),
        without_caption=lacking["caption"],
        without_picture=lacking["picture"],
        damage=damage[0] if damage else None,
    )


def _members(file: BinaryIO, damage: list[str]) -> Iterator[_Member]:
    """The regular files of a tar, up to its end or its first damage, which is appended to `damage`."""
    size = file.seek(0, 2)
    file.seek(0)
    end = 0
    try:
        tar: Any = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - the caller closes the file
        while (info := tar.next()) is not None:
            tar.members = []  # otherwise tarfile keeps every header
            stop = info.offset_data + info.size
            if stop > size:
                damage.append(f"truncated: {info.name} should end at byte {stop:,}, the file has {size:,}")
                return
            end = tar.offset
            member = _member(info, stop)
            if member is not None:
                yield member
    except tarfile.TarError as error:
        damage.append(f"{'truncated or damaged' if end else 'not a tar file'} at byte {end:,} ({error})")
        return
    # tarfile takes any header it cannot read for the end; the real end is a block of zeros.
    file.seek(end)
    if file.read(BLOCK) != bytes(BLOCK):
        damage.append(f"truncated or damaged at byte {end:,} of {size:,}")


def _member(info: tarfile.TarInfo, stop: int) -> _Member | None:
    folder, slash, base = info.name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    if not info.isreg() or not dot or not stem or stop - info.offset > LONGEST:
        return None
    return _Member(folder + slash + stem, suffix.lower(), info.offset, stop - info.offset)

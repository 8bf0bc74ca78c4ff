"""The index of a dataset's shards: made once, by several processes at a time, and kept beside the shards.

An index folder holds `shards.json`, one entry a shard, and for each shard a `.npy` file of its samples' places, which
is mapped into memory when it is first needed. An entry counts as long as the shard's size and time of change are those
it was made with. An indexing that is killed loses its last half minute.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import multiprocessing
import os
import re
import tarfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from minigpt4.common.errors import ConfigError, DataError
from minigpt4.common.files import write_atomically

logger = logging.getLogger(__name__)
STREAM = re.compile(r"^(pipe:|[a-z][a-z0-9+.-]*://)", re.IGNORECASE)
WILDCARD = re.compile(r"[*?\[]")
DATA_VARIABLE = "MINIGPT4_DATA"


def shard_paths(name: str, patterns: str | Sequence[str] | None) -> list[Path]:
    """The shards that a dataset's patterns stand for, whether they exist or not.

    Args:
        name: The dataset's key in the configuration, for messages.
        patterns: One or several; `{00000..01255}` and `{a,b}` are expanded, `*` and `?` matched against the disk.

    Raises:
        ConfigError: None is given, one is a stream, matches nothing, or names a shard that another one names too.
    """
    key = f"datasets.{name}.shards"
    listed = [patterns] if isinstance(patterns, str) else list(patterns or [])
    if not listed or not all(isinstance(pattern, str) and pattern for pattern in listed):
        raise ConfigError(f"{key}: a pattern such as 'data/{{00000..00099}}.tar' is expected, or a list of them")
    paths = [path for pattern in listed for path in _expanded(key, pattern)]
    repeated = [path for path, count in Counter(paths).items() if count > 1]
    if repeated:
        raise ConfigError(f"{key}: {min(repeated)} is named twice; its samples would count double")
    return paths


def _expanded(key: str, pattern: str) -> list[Path]:
    if STREAM.match(pattern):
        raise ConfigError(
            f"{key}: '{pattern}' is a stream; an exact order and resume need shards that can be read at any place: "
            "copy them to a disk (dataset/download_shards.py), or mount the store that holds them"
        )
    from braceexpand import braceexpand

    try:
        expanded = list(braceexpand(pattern))
    except ValueError as error:
        raise ConfigError(f"{key}: '{pattern}' has unbalanced braces; write {{00000..00099}}.tar") from error
    paths: list[Path] = []
    for part in expanded:
        found = sorted(glob.glob(part)) if WILDCARD.search(part) else [part]
        if not found:
            raise ConfigError(
                f"{key}: no file matches '{part}'; set the pattern by --options {key}=PATTERN, or the environment "
                f"variable {DATA_VARIABLE} to the folder that holds the data"
            )
        paths.extend(map(Path, found))
    return paths


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


FOLDER = "minigpt4_index"
"""Where the index lies, beside the shards, unless the configuration names another folder."""
TABLE = "shards.json"
FORMAT = 1
SAVED_EVERY = 30.0
"""Seconds between two savings of the table while shards are looked through."""
ALONE = 2 << 30
"""Bytes of shards looked through without starting processes for it, which takes some seconds."""
STAT_THREADS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """What the table says of a shard.

    Attributes:
        size: Bytes of the tar.
        mtime_ns: Its time of change.
        samples: Samples with picture and caption.
        without_caption: Samples with a picture only.
        without_picture: Samples with a caption only.
        damage: What is wrong with the file, if anything.
    """

    size: int
    mtime_ns: int
    samples: int
    without_caption: int
    without_picture: int
    damage: str | None

    @property
    def problem(self) -> str | None:
        """Why not all of the shard can be used; None where nothing is wrong."""
        if self.damage:
            return f"{self.damage}; {self.samples:,} samples before that are whole" if self.samples else self.damage
        if self.samples:
            return None
        if self.without_caption:
            return f"none of its {self.without_caption:,} pictures has a caption (.txt, or .json with 'caption')"
        return "it holds no sample (a picture and a caption of the same name)"


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """The shards of a dataset that exist.

    Attributes:
        folder: Of the index.
        entries: The shards' paths, in the order of the configuration, and what is known of them.
        missing: Paths of those that do not exist.
        table: Size and time of change of the table that the entries stand in; None: there is none.
    """

    folder: Path
    entries: Mapping[Path, ShardEntry]
    missing: Sequence[Path]
    table: tuple[int, int] | None = None

    def is_here(self) -> bool:
        """Whether this machine has the table that the entries are from; one with disks of its own has another."""
        return self.table is not None and self.table == _stat(self.folder / TABLE)

    def problems(self) -> dict[Path, str]:
        """Shards that cannot be used, or not to the end, and why."""
        absent = {path: "it does not exist" for path in self.missing}
        return absent | {path: entry.problem for path, entry in self.entries.items() if entry.problem}

    def rows(self, path: Path) -> np.ndarray:
        """Where the samples of a shard lie, memory-mapped, of type ROW.

        Raises:
            DataError: The index cannot be read.
        """
        file = self.folder / f"{_name(path, self.folder)}.npy"
        try:
            rows: np.ndarray = np.load(file, mmap_mode="r" if self.entries[path].samples else None)
        except (OSError, ValueError) as error:
            raise DataError(
                f"index {file} cannot be read ({error}); delete {self.folder}, and it is made anew"
            ) from error
        return rows


def open_index(paths: Sequence[Path], folder: Path | None, processes: int | None = None) -> ShardIndex:
    """The index of these shards; those that are new or have changed are looked through first.

    Args:
        paths: Of the shards, existing or not.
        folder: Of the index; None: beside the first shard that exists.
        processes: Look through so many shards at a time; None: as many as there are cores.

    Raises:
        DataError: The folder cannot be written.
    """
    # Threads: on a network disk each answer takes its time.
    with ThreadPoolExecutor(STAT_THREADS) as pool:
        found = {path: stat for path, stat in zip(paths, pool.map(_stat, paths), strict=True) if stat is not None}
    missing = [path for path in paths if path not in found]
    if not found:
        return ShardIndex(folder or Path(), {}, missing)
    folder = folder or next(iter(found)).parent / FOLDER
    table = _read_table(folder)
    changed = [path for path, stat in found.items() if not _is_current(table.get(_name(path, folder)), stat)]
    if changed:
        _look_through(changed, found, folder, table, processes)
    return ShardIndex(folder, {path: table[_name(path, folder)] for path in found}, missing, _stat(folder / TABLE))


def _stat(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def _is_current(entry: ShardEntry | None, stat: tuple[int, int]) -> bool:
    return entry is not None and (entry.size, entry.mtime_ns) == stat


def _name(path: Path, folder: Path) -> str:
    """A shard's key in the table; it stays where shards and index are moved together."""
    relative = os.path.relpath(path.parent, folder)
    return f"{path.name}-{hashlib.sha256(relative.encode()).hexdigest()[:8]}"


def _read_table(folder: Path) -> dict[str, ShardEntry]:
    """What is known already; a table that cannot be understood is made anew."""
    try:
        content = json.loads((folder / TABLE).read_text(encoding="utf-8"))
        if content["format"] == FORMAT:
            return {name: ShardEntry(**entry) for name, entry in content["shards"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s cannot be used (%s) and is made anew", folder / TABLE, error)
    return {}


def _write_table(folder: Path, table: Mapping[str, ShardEntry]) -> None:
    content: dict[str, Any] = {"format": FORMAT, "shards": {name: asdict(entry) for name, entry in table.items()}}
    write_atomically(folder / TABLE, lambda temporary: temporary.write_text(json.dumps(content), encoding="utf-8"))


def _look_through(
    paths: Sequence[Path],
    stats: Mapping[Path, tuple[int, int]],
    folder: Path,
    table: dict[str, ShardEntry],
    processes: int | None,
) -> None:
    """Add these shards to the table, saving it now and then."""
    logger.info(
        "looking through %d shards; their index goes to %s (for many shards do this before a run of several processes: "
        "python -m minigpt4.datasets.check CARD --no-images)",
        len(paths),
        folder,
    )
    saved = time.monotonic()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        jobs = [(path, folder / f"{_name(path, folder)}.npy", stats[path]) for path in paths]
        for path, entry in tqdm(_entries(jobs, processes), total=len(jobs), desc="index", unit="shard", disable=None):
            table[_name(path, folder)] = entry
            if time.monotonic() - saved > SAVED_EVERY:
                _write_table(folder, table)
                saved = time.monotonic()
        _write_table(folder, table)
    except OSError as error:
        raise DataError(
            f"the index of the shards cannot be written to {folder} ({error.strerror or error}); name a folder that "
            "can be in datasets.NAME.shard_index"
        ) from error


Job = tuple[Path, Path, tuple[int, int]]


def _entries(jobs: Sequence[Job], processes: int | None) -> Iterator[tuple[Path, ShardEntry]]:
    if processes == 1 or sum(size for _, _, (size, _) in jobs) <= ALONE:
        yield from map(_index_shard, jobs)
        return
    # Not forked: this process may hold a GPU and threads of its own.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes or _cores(), mp_context=context) as pool:
        yield from pool.map(_index_shard, jobs)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _index_shard(job: Job) -> tuple[Path, ShardEntry]:
    path, rows_file, (size, mtime_ns) = job
    try:
        found = scan(path)
    except OSError as error:
        # With a time that no file has, so that the shard is looked at again the next time.
        reason = f"it cannot be read ({error.strerror or error})"
        return path, ShardEntry(size=size, mtime_ns=-1, samples=0, without_caption=0, without_picture=0, damage=reason)
    write_atomically(rows_file, lambda temporary: _save_rows(temporary, found.rows))
    return path, ShardEntry(
        size=size,
        mtime_ns=mtime_ns,
        samples=len(found.rows),
        without_caption=found.without_caption,
        without_picture=found.without_picture,
        damage=found.damage,
    )


def _save_rows(temporary: Path, rows: np.ndarray) -> None:
    with temporary.open("wb") as file:  # np.save would append .npy to a name
        np.save(file, rows)

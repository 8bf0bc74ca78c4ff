"""The index of a dataset's shards: where in the tar files the samples are.

An index folder holds `shards.json`, one entry a shard, and for each shard a `.npy` file of its samples' positions,
which is memory-mapped when it is first needed. An entry is valid as long as the shard's size and time of change are
those it was made with. An indexing that is killed loses its last half minute.
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
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from minigpt4.common.distributed import available_cores
from minigpt4.common.errors import ConfigError, DataError, RemoteDataError
from minigpt4.common.files import (
    DATA_VARIABLE,
    read_json,
    remove_temporary_files,
    replace_lone_surrogates,
    write_atomically,
    write_text,
)
from minigpt4.common.logging import track

if TYPE_CHECKING:
    from minigpt4.datasets.shards.remote import RemoteShards

logger = logging.getLogger(__name__)
IMAGE_MEMBERS = ("jpg", "jpeg", "png", "webp")
"""Suffixes of a shard's members that are images, as img2dataset writes them."""
CAPTION_MEMBERS = ("txt", "json")
"""Suffixes of captions; the first that a sample has is read. img2dataset writes both, and txt is shorter."""
ROW = np.dtype([("picture", "<i8"), ("picture_bytes", "<i4"), ("caption", "<i8"), ("caption_bytes", "<i4")])
"""Where the members of a sample, image and caption, start (at their headers), and the bytes up to the end of their
content. The names are part of the `.npy` files."""
MAX_MEMBER_BYTES = 2**31 - 1
"""Largest member that `ROW` can describe; larger ones are ignored."""
FOLDER = "minigpt4_index"
"""Index folder beside the shards, unless the configuration names another one."""
TABLE = "shards.json"
FORMAT = 2
"""Version of the table; one of another version is made again. Since 2, equal names are a problem of a shard."""
SAVE_SECONDS = 30.0
"""Time between two writes of the table while shards are scanned."""
SERIAL_BYTES = 2 << 30
"""Up to this size in total, shards are scanned without starting processes, which takes some seconds."""
STAT_THREADS = 16
REMOTE = re.compile(r"^(pipe:|[a-z][a-z0-9+.-]*://)", re.IGNORECASE)
WILDCARD = re.compile(r"[*?\[]")
FileStat = tuple[int, int]
"""Size in bytes and time of change in nanoseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """A shard's entry in the table; the names of the attributes are its keys.

    Attributes:
        size: bytes of the tar.
        mtime_ns: time of change of the tar.
        samples: samples with image and caption.
        without_caption: samples with an image only.
        without_picture: samples with a caption only.
        damage: what is wrong with the file; None: nothing.
    """

    size: int
    mtime_ns: int
    samples: int
    without_caption: int
    without_picture: int
    damage: str | None

    @property
    def problem(self) -> str | None:
        """Why the shard cannot be used, or only in part; None where nothing is wrong."""
        if self.damage:
            return f"{self.damage}; {self.samples:,} complete samples before that" if self.samples else self.damage
        if self.samples:
            return None
        if self.without_caption:
            return f"none of its {self.without_caption:,} images has a caption (.txt, or .json with 'caption')"
        return "it holds no sample (an image and a caption of the same name)"


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """The shards of a dataset that exist.

    Attributes:
        folder: folder of the index.
        entries: entries by path, in the order of the configuration.
        missing: paths that do not exist.
        table: size and time of change of the table; None: there is none.
        remote: shards that are elsewhere; None: all are files.
        unreachable: why shards elsewhere are missing, by the paths of their copies.
    """

    folder: Path
    entries: Mapping[Path, ShardEntry]
    missing: Sequence[Path]
    table: FileStat | None = None
    remote: RemoteShards | None = None
    unreachable: Mapping[Path, str] = field(default_factory=dict)

    def is_here(self) -> bool:
        """Whether this machine has the table that the entries are from; one with disks of its own has another."""
        return self.table is not None and self.table == _stat(self.folder / TABLE)

    def problems(self) -> dict[Path, str]:
        """Shards that cannot be used, or only in part, and why."""
        absent = {path: self.unreachable.get(path, "it does not exist") for path in self.missing}
        return absent | {path: entry.problem for path, entry in self.entries.items() if entry.problem}

    def rows(self, path: Path) -> np.ndarray:
        """The positions of a shard's samples, memory-mapped, of type ROW.

        Raises:
            DataError: The index cannot be read.
        """
        file, samples = self.folder / f"{_key(path, self.folder)}.npy", self.entries[path].samples
        try:
            rows: np.ndarray = np.load(file, mmap_mode="r" if samples else None)
            if rows.dtype != ROW or rows.shape != (samples,):
                raise ValueError(f"{samples:,} rows of another form are expected")
        except Exception as error:  # a damaged header makes numpy raise nearly anything
            raise DataError(f"index {file} cannot be read ({error}); delete {self.folder} to make it again") from error
        return rows


def shard_paths(name: str, patterns: str | Sequence[str] | None, remote: RemoteShards | None = None) -> list[Path]:
    """The paths that a dataset's patterns stand for, whether they exist or not.

    Args:
        name: key of the dataset in the configuration, for messages.
        patterns: one or several; `{00000..01255}` and `{a,b}` are expanded, `*` and `?` matched against the disk.
        remote: where shards that are elsewhere are added, whose paths are those of their copies.

    Raises:
        ConfigError: There is none, one matches nothing, or names a shard that another one names too.
    """
    key = f"datasets.{name}.shards"
    listed = [patterns] if isinstance(patterns, str) else list(patterns or [])
    if not listed or not all(isinstance(pattern, str) and pattern for pattern in listed):
        raise ConfigError(f"{key}: a pattern such as 'data/{{00000..00099}}.tar' is expected, or a list of them")
    paths = [path for pattern in listed for path in _expand(key, pattern, remote)]
    repeated = [path for path, count in Counter(paths).items() if count > 1]
    if repeated:
        raise ConfigError(f"{key}: {min(repeated)} is named twice; its samples would count double")
    return paths


def has_remote(patterns: str | Sequence[str] | None) -> bool:
    """Whether any of a dataset's patterns is about shards that are elsewhere."""
    listed = [patterns] if isinstance(patterns, str) else list(patterns or [])
    return any(isinstance(pattern, str) and REMOTE.match(pattern) for pattern in listed)


def _expand(key: str, pattern: str, remote: RemoteShards | None) -> list[Path]:
    from braceexpand import braceexpand

    try:
        parts = list(braceexpand(pattern))
    except ValueError as error:
        raise ConfigError(f"{key}: '{pattern}' has unbalanced braces; write {{00000..00099}}.tar") from error
    if remote is not None and REMOTE.match(pattern):
        return [remote.add(part) for part in parts]
    paths: list[Path] = []
    for part in parts:
        found = sorted(glob.glob(part)) if WILDCARD.search(part) else [part]
        if not found:
            raise ConfigError(
                f"{key}: no file matches '{part}'; set the pattern by --options {key}=PATTERN, or the environment "
                f"variable {DATA_VARIABLE} to the folder that holds the data"
            )
        paths.extend(map(Path, found))
    return paths


def open_index(
    paths: Sequence[Path], folder: Path | None, processes: int | None = None, remote: RemoteShards | None = None
) -> ShardIndex:
    """The index of these shards; those that are new or have changed are scanned first, those elsewhere copied for it.

    Args:
        paths: paths of the shards, existing or not.
        folder: folder of the index; None: beside the first shard that exists.
        processes: shards scanned at a time; None: one on each core.
        remote: those of `paths` that are copies of shards elsewhere; None: there are none.

    Raises:
        DataError: The folder cannot be written.
    """
    # Threads, because a network disk takes a while for each answer.
    unreachable: dict[Path, str] = {}

    def stat_of(path: Path) -> FileStat | None:
        if remote is None or path not in remote.urls:
            return _stat(path)
        try:
            return remote.stat(path)
        except RemoteDataError as error:
            unreachable[path] = str(error)
            return None

    with ThreadPoolExecutor(STAT_THREADS) as pool:
        stats = {path: stat for path, stat in zip(paths, pool.map(stat_of, paths), strict=True) if stat is not None}
    missing = [path for path in paths if path not in stats]
    if not stats:
        return ShardIndex(folder or Path(), {}, missing, remote=remote, unreachable=unreachable)
    folder = folder or next(iter(stats)).parent / FOLDER
    table = _read_table(folder)
    known = {path: table.get(_key(path, folder)) for path in stats}
    changed = [path for path, entry in known.items() if entry is None or (entry.size, entry.mtime_ns) != stats[path]]
    if changed:
        _add_to_table(changed, stats, folder, table, processes, remote)
    entries = {path: table[_key(path, folder)] for path in stats}
    return ShardIndex(folder, entries, missing, _stat(folder / TABLE), remote, unreachable)


def _stat(path: Path) -> FileStat | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def _key(path: Path, folder: Path) -> str:
    """A shard's key in the table, which does not change when shards and index are moved together."""
    relative = os.path.relpath(path.parent, folder)
    return f"{path.name}-{hashlib.sha256(relative.encode()).hexdigest()[:8]}"


def _read_table(folder: Path) -> dict[str, ShardEntry]:
    """The entries so far; none where the table cannot be used."""
    file = folder / TABLE
    if not file.is_file():
        return {}
    try:
        content = read_json(file)
        if content["format"] == FORMAT:
            return {key: _entry(fields) for key, fields in content["shards"].items()}
    except (DataError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s cannot be used (%s) and is made again", file, replace_lone_surrogates(str(error)))
    return {}


def _entry(fields: Mapping[str, Any]) -> ShardEntry:
    """An entry of the table; TypeError where a value is of another type."""
    counts = {key: value for key, value in fields.items() if key != "damage"}
    least = {"mtime_ns": -1}
    if not all(type(value) is int and least.get(key, 0) <= value < 2**63 for key, value in counts.items()):
        raise TypeError(f"numbers are expected, found {counts}")
    return ShardEntry(damage=None if fields["damage"] is None else str(fields["damage"]), **counts)


def _write_table(folder: Path, table: Mapping[str, ShardEntry]) -> None:
    content = {"format": FORMAT, "shards": {key: asdict(entry) for key, entry in table.items()}}
    write_text(folder / TABLE, json.dumps(content))


def _add_to_table(
    paths: Sequence[Path],
    stats: Mapping[Path, FileStat],
    folder: Path,
    table: dict[str, ShardEntry],
    processes: int | None,
    remote: RemoteShards | None,
) -> None:
    """Scan these shards and add them to the table, which is written now and then."""
    logger.info(
        "scanning %d shards; their index goes to %s (for many shards, do this before a run of several processes: "
        "minigpt4 check CARD --no-images)",
        len(paths),
        folder,
    )
    written = time.monotonic()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_temporary_files(folder, "*")
        elsewhere = {path: remote.only(path) for path in paths if path in remote.urls} if remote else {}
        jobs = [(path, folder / f"{_key(path, folder)}.npy", stats[path], elsewhere.get(path)) for path in paths]
        for path, entry in track(_scan_all(jobs, processes), "index", "shards", len(jobs)):
            table[_key(path, folder)] = entry
            if time.monotonic() - written > SAVE_SECONDS:
                _write_table(folder, table)
                written = time.monotonic()
        _write_table(folder, table)
    except OSError as error:
        raise DataError(
            f"the index of the shards cannot be written to {folder} ({error.strerror or error}); name a writable "
            "folder in datasets.NAME.shard_index"
        ) from error


Job = tuple[Path, Path, FileStat, "RemoteShards | None"]
"""A shard, the file of its rows, the shard's size and time of change, and where it is if that is elsewhere."""


def _scan_all(jobs: Sequence[Job], processes: int | None) -> Iterator[tuple[Path, ShardEntry]]:
    if processes == 1 or sum(size for _, _, (size, _), _ in jobs) <= SERIAL_BYTES:
        yield from map(_scan_job, jobs)
        return
    # Not forked: this process may hold a GPU, and threads of its own.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes or available_cores(), mp_context=context) as pool:
        yield from pool.map(_scan_job, jobs)


def _scan_job(job: Job) -> tuple[Path, ShardEntry]:
    path, rows_file, (size, mtime_ns), remote = job
    try:
        if remote is not None:
            remote.fetch(path, size, again=True)
        found = scan(path)
    except RemoteDataError as error:
        return path, ShardEntry(
            size=size, mtime_ns=-1, samples=0, without_caption=0, without_picture=0, damage=str(error)
        )
    except OSError as error:
        # With a time that no file has, so that the shard is scanned again the next time.
        reason = f"it cannot be read ({error.strerror or error})"
        return path, ShardEntry(size=size, mtime_ns=-1, samples=0, without_caption=0, without_picture=0, damage=reason)

    def save(temporary: Path) -> None:
        with temporary.open("wb") as file:  # np.save appends .npy to a name
            np.save(file, found.rows)

    write_atomically(rows_file, save)
    return path, ShardEntry(
        size=size,
        mtime_ns=mtime_ns,
        samples=len(found.rows),
        without_caption=found.without_caption,
        without_picture=found.without_image,
        damage=found.damage,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardScan:
    """What a shard holds.

    Attributes:
        rows: a row of type ROW for each sample with image and caption; of a damaged file, those before the damage.
        without_caption: samples with an image only.
        without_image: samples with a caption only.
        damage: what is wrong with the file; None: nothing.
    """

    rows: np.ndarray
    without_caption: int
    without_image: int
    damage: str | None = None


def scan(path: Path) -> ShardScan:
    """Find the samples of a shard by its headers, without reading the contents.

    Raises:
        OSError: The file cannot be opened.
    """
    damage: list[str] = []
    rows: list[tuple[int, int, int, int]] = []
    without_caption = without_image = 0
    with path.open("rb") as file:
        for key, group in groupby(_members(file, damage), key=lambda member: member.key):
            listed = list(group)
            members = {member.suffix: member for member in listed}
            if len(members) < len(listed):
                again = next(member for member in listed if members[member.suffix] is not member)
                damage.insert(
                    0,
                    f"two samples that follow each other have the key {key}, since {key}.{again.suffix} comes twice; "
                    "give every sample a key of its own",
                )
                break
            image = next((members[s] for s in IMAGE_MEMBERS if s in members), None)
            caption = next((members[s] for s in CAPTION_MEMBERS if s in members), None)
            if image and caption:
                rows.append((image.start, image.length, caption.start, caption.length))
            elif image:
                without_caption += 1
            elif caption:
                without_image += 1
    return ShardScan(
        rows=np.array(rows, dtype=ROW),
        without_caption=without_caption,
        without_image=without_image,
        damage=damage[0] if damage else None,
    )


@dataclass(frozen=True, slots=True)
class _Member:
    """A member of a tar: sample and kind by its name, first byte of its header, bytes to the end of its content."""

    key: str
    suffix: str
    start: int
    length: int


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
            if info.size < 0 or tar.offset <= end:  # a damaged size leads back
                raise tarfile.HeaderError(f"{info.name} has {info.size:,} bytes")
            if stop > size:
                damage.append(f"truncated: {info.name} should end at byte {stop:,}, the file has {size:,}")
                return
            end = tar.offset
            folder, slash, base = info.name.rpartition("/")
            stem, dot, suffix = base.partition(".")
            if info.isreg() and dot and stem and stop - info.offset <= MAX_MEMBER_BYTES:
                yield _Member(folder + slash + stem, suffix.lower(), info.offset, stop - info.offset)
    except OSError:
        raise
    except Exception as error:  # damaged headers make tarfile raise nearly anything
        damage.append(f"{'truncated or damaged' if end else 'not a tar file'} at byte {end:,} ({error})")
        return
    # tarfile takes any header it cannot read for the end; the real end is a block of zeros.
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        damage.append(f"truncated or damaged at byte {end:,} of {size:,}")

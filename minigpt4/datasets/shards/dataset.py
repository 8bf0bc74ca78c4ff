"""Tar shards -> samples, read at the positions that the index holds."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import tarfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from minigpt4.common.errors import ConfigError, DataError, MissingSplitError, RemoteDataError
from minigpt4.common.files import DATA_VARIABLE, replace_lone_surrogates
from minigpt4.common.schema import BadData, DatasetConfig
from minigpt4.common.types import Record
from minigpt4.datasets.instruction import InstructionDataset
from minigpt4.datasets.readers.rows import LazyRecords
from minigpt4.datasets.sampler import Order, ShardShuffle
from minigpt4.datasets.shards.index import FOLDER, ShardIndex, has_remote, open_index, shard_paths

logger = logging.getLogger(__name__)
SPLIT = "train"
"""The only split of shards."""
OPEN_SHARDS = 64
"""Files kept open by each process; with fewer than the shards of a group (`shuffle_shards`) they are reopened."""
NAME_BYTES = 8 * tarfile.BLOCKSIZE
"""Bytes of a member that contain its name: long names take up more than one block."""
CAPTION_KEY = "caption"
"""Key of the caption in a `.json` member."""
SHOWN = 20
"""Bad shards named in the log; `minigpt4 check` names all."""


def index_shards(name: str, cfg: DatasetConfig) -> ShardIndex:
    """The index of a dataset's shards, made or updated first where necessary.

    Raises:
        ConfigError: The patterns are wrong or match nothing.
        DataError: The index cannot be written.
    """
    folder = Path(cfg.shard_index) if cfg.shard_index else None
    if not has_remote(cfg.shards):
        return open_index(shard_paths(name, cfg.shards), folder)
    from minigpt4.datasets.shards.remote import RemoteShards

    max_bytes = cfg.shard_cache_gb and cfg.shard_cache_gb * 1e9
    remote = RemoteShards(Path(cfg.shard_cache), max_bytes)
    paths = shard_paths(name, cfg.shards, remote)
    index = open_index(paths, folder or remote.folder / FOLDER / name, remote=remote)
    window = sum(sorted((entry.size for entry in index.entries.values()), reverse=True)[: cfg.shuffle_shards])
    if max_bytes and window > max_bytes:
        logger.warning(
            "dataset %s: shard_cache_gb is %.3g, but the %d shards that are shuffled together have %.3g GB: they are "
            "copied again and again; raise it, or lower shuffle_shards",
            name,
            cfg.shard_cache_gb,
            cfg.shuffle_shards,
            window / 1e9,
        )
    return index


def prepare_shards(name: str, cfg: DatasetConfig) -> ShardIndex:
    """The index of a dataset's shards, checked for training; problems are logged.

    Raises:
        ConfigError: As for `index_shards`; or a key does not apply to shards.
        DataError: As for `index_shards`; or there is no sample, or a shard cannot be used and `bad_shards` is stop.
    """
    if cfg.feature_cache:
        raise ConfigError(f"datasets.{name}.feature_cache: shards cannot have one; delete the line")
    index = index_shards(name, cfg)
    problems = index.problems()
    some_usable = any(entry.samples for entry in index.entries.values())
    if problems and (cfg.bad_shards is BadData.stop or not some_usable):
        first, why = next(iter(problems.items()))
        others = f" (and {len(problems) - 1:,} more shards)" if len(problems) > 1 else ""
        remedy = (
            f"`minigpt4 check` names them all; datasets.{name}.bad_shards=skip trains without them"
            if some_usable
            else f"set the pattern by --options datasets.{name}.shards=PATTERN, or the environment variable "
            f"{DATA_VARIABLE}"
        )
        raise DataError(f"datasets.{name}.shards: {first}: {why}{others}; {remedy}")
    for path, problem in list(problems.items())[:SHOWN]:
        logger.warning("dataset %s: shard %s: %s", name, path, problem)
    if len(problems) > SHOWN:
        logger.warning("dataset %s: %d more shards cannot be used, or only in part", name, len(problems) - SHOWN)
    left_out = sum(entry.without_caption for entry in index.entries.values())
    if left_out:
        logger.warning("dataset %s: %d images have no caption and are left out", name, left_out)
    return index


def load_shards(
    name: str, cfg: DatasetConfig, splits: Sequence[str], prepared: ShardIndex | None = None
) -> ShardRecords:
    """The samples of a dataset's shards.

    Args:
        name: key of the dataset in the configuration.
        cfg: its configuration.
        splits: splits to take; there is only `train`.
        prepared: what `prepare_shards` returned on the main process. Where it is valid on this machine too, the shards
            are not checked again: a thousand processes with ten thousand shards would be ten million requests to a
            file server.

    Raises:
        ConfigError: As for `prepare_shards`.
        MissingSplitError: Another split than `train` is asked for.
        DataError: As for `prepare_shards`.
    """
    for split in splits:
        if split != SPLIT:
            raise MissingSplitError(
                f"datasets.{name}: there is no split '{split}': shards are for training (run.valid_splits: [] where "
                "there is nothing else); evaluate on a dataset with annotations"
            )
    index = prepared if prepared is not None and prepared.is_here() else prepare_shards(name, cfg)
    return ShardRecords(index)


class ShardDataset(InstructionDataset):
    """Images and captions in tar shards; otherwise an instruction dataset like any other.

    An image or a caption that cannot be read is replaced by another sample, as there.

    Args:
        name: key of the dataset in the configuration, for messages.
        records: samples of the shards.
        window: shards whose samples are shuffled with each other.
        options: the other arguments of `InstructionDataset`.
    """

    records: ShardRecords

    def __init__(self, name: str, records: ShardRecords, *, window: int, **options: Any) -> None:
        super().__init__(name, records, images=records.paths[0].parent, **options)
        self.window = window

    def order(self) -> Order:
        """Shards in random order, and samples in random order within groups of `window` shards."""
        return ShardShuffle(f"{self.seed}-{self.name}", self.records.counts, self.window)

    def identity(self) -> str:
        """The number of samples, and a digest of prompts and shards (names, sizes, counts); no caption is read."""
        digest = hashlib.sha256(repr(list(self.prompts)).encode())
        for path in self.records.paths:
            entry = self.records.shard_index.entries[path]
            digest.update(repr((path.name, entry.size, entry.samples)).encode())
        return f"{len(self)} samples in {len(self.records.paths)} shards, {digest.hexdigest()[:16]}"

    def open(self, index: int) -> tuple[Tensor, ...]:
        """The only image of a sample, before its record is asked for; errors as for `open_image`."""
        return (self.open_image(index),)

    def open_image(self, index: int, number: int = 0) -> Tensor:
        """The image of a sample, (3, S, S), as of an instruction dataset.

        Raises:
            DataError: Image or caption cannot be used; the message names shard and sample.
        """
        sample = self.records.sample(index)
        return self.image_processor(sample.image, sample.image_name)

    def _remedy(self, reason: str) -> str:
        return f"the shards look wrong ({reason}); `minigpt4 check` names every bad sample"


@dataclass(frozen=True, slots=True)
class ShardSample:
    """A sample as stored in its shard.

    Attributes:
        shard: path of the shard.
        record: its caption, and its name.
        image: the encoded image file.
    """

    shard: Path
    record: Record
    image: bytes

    @property
    def image_name(self) -> str:
        """The image's name in messages."""
        return f"{Path(self.record.image).name} in {self.shard}"


class ShardRecords(LazyRecords):
    """The samples of all usable shards by number, in the order of the shards; read when they are asked for.

    Args:
        shard_index: index of the shards.
    """

    def __init__(self, shard_index: ShardIndex) -> None:
        self.shard_index = shard_index
        self.paths = [path for path, entry in shard_index.entries.items() if entry.samples]
        self.counts = np.array([shard_index.entries[path].samples for path in self.paths], dtype=np.int64)
        self._ends = np.cumsum(self.counts)
        self._open: OrderedDict[int, tuple[int, np.ndarray]] = OrderedDict()
        self._latest: tuple[int, Record | None] = (-1, None)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def record(self, number: int) -> Record:
        """The record of a sample, without its image; errors as for `sample`."""
        if number == self._latest[0] and self._latest[1] is not None:
            return self._latest[1]
        shard, row = self._find(number)
        header = self._read(shard, int(row["picture"]), min(int(row["picture_bytes"]), NAME_BYTES))
        try:
            with tarfile.open(fileobj=io.BytesIO(header), mode="r:") as tar:
                name = tar.next().name  # type: ignore[union-attr]
        except Exception as error:  # as for `_member`
            raise self._changed(shard, int(row["picture"]), error) from error
        return self._record(shard, row, name)

    def __iter__(self) -> Iterator[Record]:
        return (self[number] for number in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}  # a loader worker opens the files itself

    def __del__(self) -> None:
        for descriptor, _ in getattr(self, "_open", {}).values():
            os.close(descriptor)

    def sample(self, number: int) -> ShardSample:
        """Record and image of a sample.

        Raises:
            DataError: The shard has changed or cannot be read, or the caption cannot be used; the message names the
                shard, and the sample where its name could be read.
            RemoteDataError: A shard elsewhere has changed, or cannot be reached.
        """
        shard, row = self._find(number)
        start, length = int(row["picture"]), int(row["picture_bytes"])
        name, image = self._member(shard, start, length)
        record = self._record(shard, row, name)
        self._latest = number, record  # the record is asked for after the image
        return ShardSample(self.paths[shard], record, image)

    def _find(self, number: int) -> tuple[int, np.void]:
        """The index of a sample's shard, and its row there."""
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        number %= len(self)
        shard = int(np.searchsorted(self._ends, number, side="right"))
        return shard, self._open_shard(shard)[1][number - (self._ends[shard] - self.counts[shard])]

    def _record(self, shard: int, row: np.void, image_name: str) -> Record:
        path = self.paths[shard]
        key = _sample_key(image_name)
        source = f"{path}, sample {key}"
        start, length = int(row["caption"]), int(row["caption_bytes"])
        name, content = self._member(shard, start, length)
        if _sample_key(name) != key:
            raise self._changed(shard, start, f"{name} is no caption of {image_name}")
        return Record(
            image_id=replace_lone_surrogates(f"{path.stem}/{key}"),
            images=(f"{path.name}/{image_name}",),
            answers=(_decode_caption(name, content, source),),
            split=SPLIT,
            source=source,
        )

    def _open_shard(self, shard: int) -> tuple[int, np.ndarray]:
        """File descriptor and rows of a shard; the least recently used one is closed to make room."""
        if shard not in self._open:
            while len(self._open) >= OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1][0])
            path = self.paths[shard]
            rows = self.shard_index.rows(path)
            try:
                self._open[shard] = self._descriptor(path), rows
            except OSError as error:
                raise DataError(f"shard {path} cannot be read: {error.strerror}") from error
        self._open.move_to_end(shard)
        return self._open[shard]

    def _descriptor(self, path: Path) -> int:
        remote = self.shard_index.remote
        if remote is not None and path in remote.urls:
            return remote.open(path, self.shard_index.entries[path].size)
        return os.open(path, os.O_RDONLY)

    def _read(self, shard: int, start: int, length: int) -> bytes:
        # pread does not move a shared position, so a forked worker may use the same descriptor.
        try:
            return os.pread(self._open_shard(shard)[0], length, start)
        except OSError as error:
            raise DataError(f"shard {self.paths[shard]} cannot be read at byte {start:,}: {error.strerror}") from error

    def _member(self, shard: int, start: int, length: int) -> tuple[str, bytes]:
        """Name and content of the single tar member at these bytes."""
        content = self._read(shard, start, length)
        try:
            with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
                info = tar.next()
                file = tar.extractfile(info) if info is not None else None
                if info is None or file is None or info.offset_data + info.size != len(content):
                    raise tarfile.ReadError("another member than when it was indexed")
                return info.name, file.read()
        except Exception as error:  # bytes that are no header make tarfile raise nearly anything
            raise self._changed(shard, start, error) from error

    def _changed(self, shard: int, start: int, error: object) -> DataError:
        """The error for a shard that is not what was indexed; of one elsewhere, nothing takes the sample's place."""
        path, remote = self.paths[shard], self.shard_index.remote
        where = f"(byte {start:,}: {error})"
        if remote is not None and path in remote.urls:
            return RemoteDataError(
                f"shard {remote.urls[path]}, copied to {path}, has changed since it was indexed {where}; delete "
                f"{self.shard_index.folder} to copy and index it again"
            )
        return DataError(
            f"shard {path} has changed since it was indexed {where}; if this was on purpose, start again to index it "
            "again"
        )


def _sample_key(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _decode_caption(name: str, content: bytes, source: str) -> str:
    """The text of a caption member.

    Raises:
        DataError: It is empty, not UTF-8, broken JSON, or without "caption".
    """
    try:
        text: Any = content.decode("utf-8-sig")
        if name.lower().endswith(".json"):
            fields = json.loads(text)
            text = fields.get(CAPTION_KEY) if isinstance(fields, Mapping) else None
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: {name} is not UTF-8 ({error.reason})") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{source}: {name} is broken JSON ({error.msg} at character {error.pos})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; lists in lists
        raise DataError(f"{source}: {name} is JSON that cannot be read ({error})") from error
    if not isinstance(text, str):
        raise DataError(f"{source}: {name} has no text under '{CAPTION_KEY}'")
    if not text.strip():
        raise DataError(f"{source}: the caption in {name} is empty")
    return replace_lone_surrogates(text.strip())

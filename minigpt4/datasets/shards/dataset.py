"""Tar shards -> samples, read from where the index says they are."""

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
from typing import Any, overload

import numpy as np
from PIL import Image
from torch import Tensor

from minigpt4.common.errors import ConfigError, DataError, MissingSplitError
from minigpt4.common.schema import BadShards, DatasetConfig
from minigpt4.common.types import Record
from minigpt4.datasets.instruction import InstructionDataset
from minigpt4.datasets.sampler import Order, ShardShuffle
from minigpt4.datasets.shards.index import ShardIndex, open_index, shard_paths
from minigpt4.processors.image import open_image

logger = logging.getLogger(__name__)
OPEN_SHARDS = 64
"""Files kept open by each process; more than the shards of a group (`shuffle_shards`), or they are opened again."""
CAPTION_KEY = "caption"


@dataclass(frozen=True, slots=True)
class ShardSample:
    """A sample as it lies in its shard.

    Attributes:
        shard: The shard's path.
        record: Its caption, and its name.
        picture: The picture's file, encoded.
    """

    shard: Path
    record: Record
    picture: bytes

    def open(self) -> Image.Image:
        """The picture, decoded.

        Raises:
            DataError: It cannot be; the message names shard and sample.
        """
        return open_image(io.BytesIO(self.picture), self.name)

    @property
    def name(self) -> str:
        """What messages call the picture."""
        return f"{Path(self.record.image).name} in {self.shard}"


class ShardRecords(Sequence[Record]):
    """The samples of all shards by number, in the order of the shards; nothing is read before it is asked for.

    Args:
        shard_index: Of the shards.
        paths: Those of its shards that are used.
    """

    def __init__(self, shard_index: ShardIndex, paths: Sequence[Path]) -> None:
        self.shard_index = shard_index
        self.paths = list(paths)
        self.counts = np.array([shard_index.entries[path].samples for path in self.paths], dtype=np.int64)
        self._ends = np.cumsum(self.counts)
        self._open: OrderedDict[int, tuple[int, np.ndarray]] = OrderedDict()
        self._latest: tuple[int, Record | None] = (-1, None)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @overload
    def __getitem__(self, number: int) -> Record: ...

    @overload
    def __getitem__(self, number: slice) -> list[Record]: ...

    def __getitem__(self, number: int | slice) -> Record | list[Record]:
        """The caption of a sample, without its picture; errors as for `sample`."""
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        if number == self._latest[0] and self._latest[1] is not None:
            return self._latest[1]
        shard, row = self._place(number)
        # The header alone tells the picture's name; long names take up more than one block.
        head = int(row["picture"]), min(int(row["picture_bytes"]), 8 * tarfile.BLOCKSIZE)
        return self._record(shard, row, _member_name(self._read(shard, *head), self.paths[shard]))

    def __iter__(self) -> Iterator[Record]:
        return (self[number] for number in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}  # a loader's worker opens the files itself

    def __del__(self) -> None:
        for descriptor, _ in getattr(self, "_open", {}).values():
            os.close(descriptor)

    def sample(self, number: int) -> ShardSample:
        """Caption and picture of a sample.

        Raises:
            DataError: The shard has changed or cannot be read, or the caption cannot be used; the message names the
                shard, and the sample where its name could be read.
        """
        shard, row = self._place(number)
        name, picture = _member(
            self._read(shard, int(row["picture"]), int(row["picture_bytes"])), self.paths[shard], int(row["picture"])
        )
        record = self._record(shard, row, name)
        self._latest = number, record  # whoever takes the picture asks for the record next
        return ShardSample(self.paths[shard], record, picture)

    def _place(self, number: int) -> tuple[int, np.void]:
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        number %= len(self)
        shard = int(np.searchsorted(self._ends, number, side="right"))
        return shard, self._opened(shard)[1][number - (self._ends[shard] - self.counts[shard])]

    def _record(self, shard: int, row: np.void, picture_name: str) -> Record:
        path = self.paths[shard]
        source = f"{path}, sample {_key(picture_name)}"
        start, length = int(row["caption"]), int(row["caption_bytes"])
        name, content = _member(self._read(shard, start, length), path, start)
        caption = _caption(name, content, source)
        return Record(
            image_id=f"{path.stem}/{_key(picture_name)}",
            image=f"{path.name}/{picture_name}",
            answers=(caption,),
            split="train",
            source=source,
        )

    def _opened(self, shard: int) -> tuple[int, np.ndarray]:
        """File descriptor and rows of a shard; the one unused for longest is closed to make room."""
        if shard not in self._open:
            while len(self._open) >= OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1][0])
            path = self.paths[shard]
            rows = self.shard_index.rows(path)
            try:
                self._open[shard] = os.open(path, os.O_RDONLY), rows
            except OSError as error:
                raise DataError(f"shard {path} cannot be read: {error.strerror}") from error
        self._open.move_to_end(shard)
        return self._open[shard]

    def _read(self, shard: int, start: int, length: int) -> bytes:
        # pread has no position to share, so a forked worker may use the same descriptor.
        try:
            return os.pread(self._opened(shard)[0], length, start)
        except OSError as error:
            raise DataError(f"shard {self.paths[shard]} cannot be read at byte {start:,}: {error.strerror}") from error


def _member(content: bytes, path: Path, start: int) -> tuple[str, bytes]:
    """Name and content of the one tar member that `content` consists of."""
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            info = tar.next()
            file = tar.extractfile(info) if info is not None else None
            if info is None or file is None or info.offset_data + info.size != len(content):
                raise tarfile.ReadError("another member than when it was indexed")
            return info.name, file.read()
    except tarfile.TarError as error:
        raise _changed(path, start, error) from error


def _member_name(head: bytes, path: Path) -> str:
    """Name of the tar member that begins with `head`."""
    try:
        return tarfile.open(fileobj=io.BytesIO(head), mode="r:").next().name  # type: ignore[union-attr]
    except (tarfile.TarError, AttributeError) as error:
        raise _changed(path, 0, error) from error


def _changed(path: Path, start: int, error: Exception) -> DataError:
    return DataError(
        f"shard {path} is not what it was when it was indexed (byte {start:,}: {error}); if it was changed on purpose, "
        "start again, and it is looked through anew"
    )


def _key(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _caption(name: str, content: bytes, source: str) -> str:
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
    if not isinstance(text, str):
        raise DataError(f"{source}: {name} has no text under '{CAPTION_KEY}'")
    if not text.strip():
        raise DataError(f"{source}: the caption in {name} is empty")
    return text.strip()


SPLIT = "train"
SHOWN = 20
"""Bad shards named in the log; `python -m minigpt4.datasets.check` names all."""


class ShardDataset(InstructionDataset):
    """Pictures and captions in tar shards; otherwise an instruction dataset like any other.

    A picture or a caption that cannot be read is replaced by another sample, as there.

    Args:
        records: The samples of the shards.
        window: Shards whose samples are shuffled among each other.
        common: As for `InstructionDataset`.
    """

    records: ShardRecords

    def __init__(self, name: str, records: ShardRecords, *, window: int, **common: Any) -> None:
        super().__init__(name, records, images=records.paths[0].parent, **common)
        self.window = window

    def order(self) -> Order:
        """Shards in any order, and samples in any order within groups of `window` shards."""
        return ShardShuffle(f"{self.seed}-{self.name}", self.records.counts, self.window)

    def identity(self) -> str:
        """What is trained on, by the names, sizes and sample counts of the shards: not a caption is read for it."""
        digest = hashlib.sha256(repr(list(self.prompts)).encode())
        for path in self.records.paths:
            entry = self.records.shard_index.entries[path]
            digest.update(repr((path.name, entry.size, entry.samples)).encode())
        return f"{len(self)} samples in {len(self.records.paths)} shards, {digest.hexdigest()[:16]}"

    def open(self, index: int) -> Tensor:
        """The picture of a sample, (3, S, S), as an instruction dataset's.

        Raises:
            DataError: Picture or caption cannot be used; the message names shard and sample.
        """
        sample = self.records.sample(index)
        return self.image_processor(sample.picture, sample.name)

    def _remedy(self, reason: str) -> str:
        return f"the shards look wrong ({reason}); python -m minigpt4.datasets.check names every bad sample"


def index_shards(name: str, cfg: DatasetConfig) -> ShardIndex:
    """The index of a dataset's shards, made first where it is not there yet.

    Raises:
        ConfigError: The patterns are wrong or match nothing.
        DataError: The index cannot be written.
    """
    return open_index(shard_paths(name, cfg.shards), Path(cfg.shard_index) if cfg.shard_index else None)


def prepare_shards(name: str, cfg: DatasetConfig) -> ShardIndex:
    """The index of a dataset's shards, fit for training; what is wrong with some of them is logged.

    Raises:
        ConfigError: As for `index_shards`; or a key does not go with shards.
        DataError: As for `index_shards`; or there is no sample, or a shard cannot be used and `bad_shards` is stop.
    """
    if cfg.feature_cache:
        raise ConfigError(f"datasets.{name}.feature_cache: there is none for shards; delete the line")
    index = index_shards(name, cfg)
    problems = index.problems()
    some_usable = any(entry.samples for entry in index.entries.values())
    if problems and (cfg.bad_shards is BadShards.stop or not some_usable):
        raise DataError(_refusal(name, problems, some_usable))
    for path, problem in list(problems.items())[:SHOWN]:
        logger.warning("dataset %s: shard %s: %s", name, path, problem)
    if len(problems) > SHOWN:
        logger.warning("dataset %s: %d more shards cannot be used to the end", name, len(problems) - SHOWN)
    left_out = sum(entry.without_caption for entry in index.entries.values())
    if left_out:
        logger.warning("dataset %s: %d pictures have no caption and are left out", name, left_out)
    return index


def load_shards(
    name: str, cfg: DatasetConfig, splits: Sequence[str], prepared: ShardIndex | None = None
) -> ShardRecords:
    """The samples of a dataset's shards.

    Args:
        name: The dataset's key in the configuration.
        cfg: Its configuration.
        splits: Splits to take; there is only `train`.
        prepared: What `prepare_shards` gave the main process. Where it holds on this machine too, no shard is looked
            at again: a thousand processes with ten thousand shards would be ten million questions to a file server.

    Raises:
        ConfigError: As for `prepare_shards`.
        MissingSplitError: Another split than `train` is asked for.
        DataError: As for `prepare_shards`.
    """
    for split in splits:
        if split != SPLIT:
            raise MissingSplitError(
                f"datasets.{name}: there is no split '{split}': shards are trained on (run.valid_splits: [] where "
                "there is nothing else); evaluate on a dataset with annotations"
            )
    index = prepared if prepared is not None and prepared.is_here() else prepare_shards(name, cfg)
    return ShardRecords(index, [path for path, entry in index.entries.items() if entry.samples])


def _refusal(name: str, problems: dict[Path, str], some_usable: bool) -> str:
    first, why = next(iter(problems.items()))
    others = f" (and {len(problems) - 1:,} more shards)" if len(problems) > 1 else ""
    remedy = (
        f"python -m minigpt4.datasets.check names them all; datasets.{name}.bad_shards=skip trains without them"
        if some_usable
        else f"set the pattern by --options datasets.{name}.shards=PATTERN, or the environment variable MINIGPT4_DATA"
    )
    return f"datasets.{name}.shards: {first}: {why}{others}; {remedy}"

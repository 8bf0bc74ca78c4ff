"""A sample's number -> its picture and its caption, read from where the index says they lie."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image

from minigpt4.common.errors import DataError
from minigpt4.common.types import Record
from minigpt4.datasets.shards.index import ShardIndex
from minigpt4.processors.image import open_image

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

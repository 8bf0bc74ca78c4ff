"""Millions of records in memory: as bytes, which loader workers share instead of copying."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any, overload

import numpy as np

from minigpt4.common.types import Record

_NAMES = tuple(known.name for known in fields(Record))
_BOXES = _NAMES.index("boxes")
_SIDES = ("left", "top", "right", "bottom", "label")


class PackedRecords(Sequence[Record]):
    """Records that are unpacked when they are asked for.

    As objects they take three times the memory, and each loader worker would come to own a copy of all of them,
    since Python counts references inside of the objects.

    Args:
        records: records in order.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        packed, ends, codes = bytearray(), [0], []
        names: dict[str | None, int] = {}
        for record in records:
            packed += _pack(record)
            ends.append(len(packed))
            codes.append(names.setdefault(record.split, len(names)))
        self._bytes = np.frombuffer(packed, dtype=np.uint8)
        self._ends = np.array(ends, dtype=np.int64)
        self._codes = np.array(codes, dtype=np.int32)
        self._names = list(names)
        self._chosen = np.arange(len(codes))

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, number: int) -> Record: ...

    @overload
    def __getitem__(self, number: slice) -> list[Record]: ...

    def __getitem__(self, number: int | slice) -> Record | list[Record]:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        place = self._chosen[number]
        return _unpack(self._bytes[self._ends[place] : self._ends[place + 1]].data)

    def splits(self) -> Counter[str | None]:
        """Number of records of each split."""
        counts = np.bincount(self._codes[self._chosen], minlength=len(self._names))
        return Counter({name: int(count) for name, count in zip(self._names, counts, strict=True) if count})

    def of_splits(self, splits: Sequence[str]) -> PackedRecords:
        """The records of these splits, in the same order; they share the memory."""
        codes = [code for code, name in enumerate(self._names) if name in splits]
        part = PackedRecords()
        part._bytes, part._ends, part._codes, part._names = self._bytes, self._ends, self._codes, self._names
        part._chosen = self._chosen[np.isin(self._codes[self._chosen], codes)]
        return part


def _pack(record: Record) -> bytes:
    values: list[Any] = [getattr(record, name) for name in _NAMES]
    values[_BOXES] = tuple(tuple(getattr(box, side) for side in _SIDES) for box in record.boxes)
    return pickle.dumps(tuple(values), protocol=pickle.HIGHEST_PROTOCOL)


def _unpack(packed: memoryview) -> Record:
    values = dict(zip(_NAMES, pickle.loads(packed), strict=True))
    if values["boxes"]:
        from minigpt4.common.boxes import Box  # most annotations have none

        values["boxes"] = tuple(Box(*sides) for sides in values["boxes"])
    return Record(**values)

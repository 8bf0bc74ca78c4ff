from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from minigpt4.common.boxes import Box
from minigpt4.common.types import Record
from minigpt4.datasets.readers.rows import PackedRecords

FULL = Record(
    image_id="7",
    images=("a.jpg", "\udce9.jpg"),
    answers=("x", "x", "y"),
    question="q",
    earlier=(("a", "b"),),
    split="val",
    source="a.json, entry 1",
    kind="colour",
    boxes=(Box(0, 0.1, 1 / 3, 1, "dog"), Box(0, 0, 1, 1)),
    choices=("x", "y"),
)
PLAIN = Record(image_id="8", images=(), answers=("x",))
MANY = [replace(PLAIN, image_id=str(n), split=("train", "val", None)[n % 3]) for n in range(30)]


def test_records_come_back_as_they_were() -> None:
    packed = PackedRecords(iter([FULL, PLAIN, FULL]))
    assert list(packed) == [FULL, PLAIN, FULL] and packed[-2] == PLAIN and packed[1:] == [PLAIN, FULL]
    assert list(pickle.loads(pickle.dumps(packed))) == [FULL, PLAIN, FULL]
    assert not PackedRecords() and list(PackedRecords()) == []
    with pytest.raises(IndexError):
        packed[3]


def test_splits_are_counted_and_chosen_in_order() -> None:
    packed = PackedRecords(MANY)
    assert packed.splits() == {"train": 10, "val": 10, None: 10}
    part = packed.of_splits(["val", "train"])
    assert list(part) == [record for record in MANY if record.split]
    assert part.splits() == {"train": 10, "val": 10}
    assert list(part.of_splits(["val"])) == MANY[1::3]
    assert len(packed.of_splits(["test"])) == 0 and packed.of_splits(["test"]).splits() == {}

from __future__ import annotations

import json
from pathlib import Path

from minigpt4.datasets.readers.rows import RowProblem
from tests.datasets.readers.conftest import read, records_of


def test_five_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    rows = [
        {"image_id": "1", "grounded_caption": "A. B.", "captions": ["A.", "B."], "filename": "1.png"},
        {"image_id": "2", "captions": ["C."], "split": "val"},
        {"image_id": 3, "grounded_caption": "D E"},  # as published
        {"image_id": "4", "grounded_caption": "old", "captions": ["new"]},
        {"grounded_caption": "x"},
    ]
    path.write_text(json.dumps(rows))
    *found, stale, unnamed = read("flickr30k", path)
    records = records_of(found)
    assert [record.image for record in records] == ["1.png", "2.jpg", "3.jpg"]
    assert [record.answers for record in records] == [("A.", "B."), ("C.",), ("D E",)]
    assert [record.split for record in records] == [None, "val", None]
    assert isinstance(stale, RowProblem) and "out of date" in stale.message
    assert str(unnamed) == f"{path}, entry 5: no 'image_id'"

"""POPE's questions as a file of the reader jsonl."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from minigpt4.common.files import PROJECT
from minigpt4.common.types import Record
from minigpt4.datasets.readers.tables import JsonlReader


def make(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["make_pope.py", *arguments])
    runpy.run_path(str(PROJECT / "dataset" / "make_pope.py"), run_name="__main__")


def test_questions_can_be_read_and_have_ids_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    objects, out = tmp_path / "objects.jsonl", tmp_path / "pope.jsonl"
    labels = {"a.png": ["dog", "cat"], "b.png": ["dog"], "c.png": ["bird", "owl"]}
    rows = [{"image": image, "boxes": [{"label": label} for label in named]} for image, named in labels.items()]
    objects.write_text("".join(json.dumps(row) + "\n" for row in rows))
    make(monkeypatch, "--objects", str(objects), "--out", str(out))
    assert f"30 questions about 3 images: {out}" in capsys.readouterr().out
    records = [record for record in JsonlReader().read(out) if isinstance(record, Record)]
    assert len({record.image_id for record in records}) == len(records) == 30
    assert {record.kind for record in records} == {"random", "popular", "adversarial"}
    assert {record.answers for record in records} == {("yes",), ("no",)} and {record.split for record in records} == {
        "test"
    }
    for wrong in (["--out", str(objects)], ["--out", str(out), "--each", "0"]):
        with pytest.raises(SystemExit):
            make(monkeypatch, "--objects", str(objects), *wrong)
    assert objects.read_text().count("\n") == 3

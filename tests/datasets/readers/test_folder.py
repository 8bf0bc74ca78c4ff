from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from minigpt4.common.errors import DataError
from minigpt4.datasets.readers.rows import RowProblem
from tests.datasets.readers.conftest import read, records_of


def test_five_images(tmp_path: Path) -> None:
    for name in ("a.jpg", "sub/b.PNG", "train/c.jpg", "val/deep/d.jpg", "val/e.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
        if path.stem != "e":
            path.with_suffix(".txt").write_text(f"image {path.stem}\n\nsecond line\n")
    (tmp_path / "notes.md").write_text("no image")
    *rows, bad = read("folder", tmp_path)
    records = records_of(rows)
    assert [record.image for record in records] == ["a.jpg", "sub/b.PNG", "train/c.jpg", "val/deep/d.jpg"]
    assert [record.split for record in records] == [None, None, "train", "val"]
    assert records[0].answers == ("image a", "second line")
    assert records[1].image_id == "sub/b"
    assert isinstance(bad, RowProblem)
    assert "e.jpg" in bad.source and "write it into e.txt" in bad.message


def test_an_empty_caption(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text(" \n")
    assert isinstance(read("folder", tmp_path)[0], RowProblem)


def test_line_ends_of_old_macs(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_bytes(b"one\rtwo\r\nthree")
    assert records_of(read("folder", tmp_path))[0].answers == ("one", "two", "three")


def test_a_folder_that_cannot_be_read_is_no_folder_without_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def refused(path: Any) -> Any:
        if Path(path).name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(DataError, match=r"locked cannot be read: Permission denied"):
        read("folder", tmp_path)


def test_names_that_are_not_utf8_can_be_opened_and_shown(tmp_path: Path) -> None:
    image = tmp_path / os.fsdecode(b"caf\xe9.png")
    Image.new("RGB", (4, 4)).save(image)
    image.with_suffix(".txt").write_text("x")
    (record,) = records_of(read("folder", tmp_path))
    assert (tmp_path / record.image).is_file()
    assert record.image_id == "caf\ufffd"

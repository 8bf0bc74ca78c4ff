from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from minigpt4.common.errors import DataError
from minigpt4.datasets.shards import index as index_module
from minigpt4.datasets.shards.index import FOLDER, open_index, scan
from tests.datasets.shards.conftest import make_shards, numbered, write_shard


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that are looked through."""
    names: list[str] = []

    def counting(path: Path):
        names.append(path.name)
        return scan(path)

    monkeypatch.setattr(index_module, "scan", counting)
    return names


def test_it_is_made_once_beside_the_shards(shards: list[Path], scanned: list[str]) -> None:
    first = open_index(shards, None)
    assert scanned == [path.name for path in shards]
    again = open_index(shards, None)
    assert len(scanned) == 5 and again.entries == first.entries
    assert first.folder == shards[0].parent / FOLDER
    assert [entry.samples for entry in again.entries.values()] == [6] * 5
    for path in shards:
        assert (again.rows(path) == scan(path).rows).all()


def test_a_changed_shard_is_looked_through_again(shards: list[Path], scanned: list[str]) -> None:
    open_index(shards, None)
    write_shard(shards[2], numbered(0, 3))
    os.utime(shards[3], ns=(1, 1))  # the same size
    found = open_index(shards, None)
    assert scanned[5:] == ["00002.tar", "00003.tar"]
    assert [entry.samples for entry in found.entries.values()] == [6, 6, 3, 6, 6]


def test_shards_added_later_and_moved_together(shards: list[Path], scanned: list[str], tmp_path: Path) -> None:
    open_index(shards[:2], None)
    open_index(shards, None)
    assert len(scanned) == 5
    shutil.move(shards[0].parent, tmp_path / "moved")
    moved = [tmp_path / "moved" / path.name for path in shards]
    assert len(open_index(moved, None).entries) == 5 and len(scanned) == 5


def test_equal_names_in_two_folders(tmp_path: Path) -> None:
    one = make_shards(tmp_path / "one", 1)
    two = [write_shard(tmp_path / "two" / "00000.tar", numbered(0, 2))]
    found = open_index([*one, *two], tmp_path / "index")
    assert [len(found.rows(path)) for path in (*one, *two)] == [6, 2]


def test_several_processes_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = make_shards(tmp_path / "data", 3)
    alone = open_index(shards, tmp_path / "alone", processes=1)
    monkeypatch.setattr(index_module, "ALONE", 0)
    shared = open_index(shards, tmp_path / "shared", processes=2)
    assert shared.entries == alone.entries
    assert all((shared.rows(path) == alone.rows(path)).all() for path in shards)


def test_an_indexing_that_was_killed_goes_on(
    shards: list[Path], scanned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "SAVED_EVERY", -1.0)

    def killed(path: Path):
        if path == shards[3]:
            raise KeyboardInterrupt
        return scan(path)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(index_module, "scan", killed)
        open_index(shards, None)
    open_index(shards, None)
    assert scanned == ["00003.tar", "00004.tar"]


def test_problems_are_named(shards: list[Path]) -> None:
    shards[0].unlink()
    write_shard(shards[1], [(key, {"png": members["png"]}) for key, members in numbered(0, 4)])
    shards[2].write_bytes(shards[2].read_bytes()[:1700])
    shards[3].write_bytes(b"")
    problems = open_index(shards, None).problems()
    assert list(problems) == shards[:4]
    assert problems[shards[0]] == "it does not exist"
    assert problems[shards[1]].startswith("none of its 4 pictures has a caption")
    assert problems[shards[2]].startswith("truncated") and "samples before that are whole" not in problems[shards[2]]
    assert problems[shards[3]].startswith("not a tar file")


def test_a_shard_that_cannot_be_read_is_tried_again(shards: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(index_module, "scan", refused)
        assert open_index(shards[:1], None).problems() == {shards[0]: "it cannot be read (Permission denied)"}
    assert open_index(shards[:1], None).problems() == {}


def test_no_shard_at_all(tmp_path: Path) -> None:
    found = open_index([tmp_path / "0.tar"], None)
    assert not found.entries and list(found.problems()) == [tmp_path / "0.tar"]


@pytest.mark.parametrize("content", ["", "[]", '{"format": 1, "shards": {"a": {"size": 1}}}', '{"format": 0}'])
def test_a_table_of_another_form_is_made_anew(shards: list[Path], scanned: list[str], content: str) -> None:
    folder = open_index(shards, None).folder
    (folder / "shards.json").write_text(content)
    assert len(open_index(shards, None).entries) == 5
    assert len(scanned) == 10 and len(json.loads((folder / "shards.json").read_text())["shards"]) == 5


def test_a_folder_that_cannot_be_written_names_the_key(shards: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written to .*file.*datasets\.NAME\.shard_index"):
        open_index(shards, tmp_path / "file")


def test_a_lost_part_of_the_index_says_what_to_do(shards: list[Path]) -> None:
    found = open_index(shards, None)
    for file in found.folder.glob("*.npy"):
        file.unlink()
    with pytest.raises(DataError, match=r"index .*\.npy cannot be read .*delete"):
        found.rows(shards[0])

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from minigpt4.datasets.shards.index import scan
from tests.datasets.shards.conftest import numbered, picture, write_shard


def members(path: Path, *, names: bool = True) -> list[tuple[str, str]]:
    """What the rows point at: (picture's member, caption's member)."""
    content = path.read_bytes()

    def name_at(start: int, length: int) -> str:
        with tarfile.open(fileobj=io.BytesIO(content[start : start + length]), mode="r:") as tar:
            info = tar.next()
            assert info is not None and info.offset_data + info.size == length
            return info.name

    return [
        (name_at(row["picture"], row["picture_bytes"]), name_at(row["caption"], row["caption_bytes"]))
        for row in scan(path).rows
    ]


def test_rows_point_at_pictures_and_captions(tmp_path: Path) -> None:
    json = b'{"caption": "x"}'
    path = write_shard(
        tmp_path / "a.tar",
        [
            ("1", {"jpg": b"j", "json": json, "txt": b"both: txt wins"}),
            ("2", {"json": json, "webp": b"w"}),
            ("folder/3", {"jpeg": b"j", "txt": b"x"}),
            ("4", {"png": b"p", "cls": b"7", "txt": b"x"}),
        ],
    )
    assert members(path) == [
        ("1.jpg", "1.txt"),
        ("2.webp", "2.json"),
        ("folder/3.jpeg", "folder/3.txt"),
        ("4.png", "4.txt"),
    ]
    assert scan(path).damage is None


def test_names_longer_than_a_header_and_upper_case(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    long = "d" * 90 + "/" + "k" * 150
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in (f"{long}.JPG", f"{long}.TXT"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    assert members(path) == [(f"{long}.JPG", f"{long}.TXT")]


def test_incomplete_samples_are_counted(tmp_path: Path) -> None:
    found = scan(write_shard(tmp_path / "a.tar", [("1", {"jpg": b"x"}), ("2", {"txt": b"x"}), *numbered(3, 2)]))
    assert (len(found.rows), found.without_caption, found.without_picture) == (2, 1, 1)


@pytest.mark.parametrize("where", ["picture", "caption", "padding", "header", "boundary"])
def test_a_truncated_file_keeps_what_is_whole(tmp_path: Path, where: str) -> None:
    path = write_shard(tmp_path / "a.tar", numbered(0, 4))
    third, caption, length = (int(scan(path).rows[name][2]) for name in ("picture", "caption", "caption_bytes"))
    cuts = {"picture": third + 520, "caption": caption + length - 1}
    cut = (cuts | {"padding": third - 3, "header": third + 100, "boundary": third})[where]
    path.write_bytes(path.read_bytes()[:cut])
    found = scan(path)
    assert found.damage is not None and "truncated" in found.damage and "byte" in found.damage
    assert len(found.rows) == 2


def test_damage_in_the_middle_is_no_end(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", numbered(0, 4))
    content = bytearray(path.read_bytes())
    third = int(scan(path).rows["picture"][2])
    content[third : third + 512] = b"\xff" * 512
    path.write_bytes(content)
    found = scan(path)
    assert len(found.rows) == 2
    assert found.damage is not None and f"damaged at byte {third:,}" in found.damage


@pytest.mark.parametrize("content", [b"", b"no tar file, but long enough to be taken for one" * 40])
def test_something_else_is_no_tar(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    found = scan(tmp_path / "a.tar")
    assert len(found.rows) == 0 and found.damage is not None and "not a tar file" in found.damage


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        folder = tarfile.TarInfo("x.d")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in ((".hidden.jpg", b"x"), ("1.png", picture(1)), ("1.txt", b"x"), ("README", b"x")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    assert members(path) == [("1.png", "1.txt")]

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from minigpt4.common.errors import ConfigError, DataError
from minigpt4.datasets.shards import index as index_module
from minigpt4.datasets.shards.index import FOLDER, open_index, scan, shard_paths
from minigpt4.datasets.shards.remote import RemoteShards
from tests.datasets.shards.conftest import encoded_image, make_shards, numbered, write_shard


class TestPaths:
    def test_brace_ranges_lists_and_wildcards(self, tmp_path: Path) -> None:
        for name in ("b.tar", "a.tar", "c.txt"):
            (tmp_path / name).touch()
        found = shard_paths(
            "laion", [f"{tmp_path}/{{008..011}}.tar", f"{tmp_path}/{{x,y}}/{{0..1}}.tar", f"{tmp_path}/*.tar"]
        )
        names = [str(path.relative_to(tmp_path)) for path in found]
        assert names == [
            "008.tar", "009.tar", "010.tar", "011.tar", "x/0.tar", "x/1.tar", "y/0.tar", "y/1.tar", "a.tar", "b.tar",
        ]  # fmt: skip

    def test_urls_become_paths_of_copies(self, tmp_path: Path) -> None:
        remote = RemoteShards(tmp_path)
        patterns = ["https://a.org/d/{0..1}.tar?key=a*b", "s3://bucket/0.tar", "pipe:cat {x,y}.tar", "own.tar"]
        paths = shard_paths("laion", patterns, remote)
        assert [path.name for path in paths] == ["0.tar", "1.tar", "0.tar", "shard.tar", "shard.tar", "own.tar"]
        assert len(set(paths)) == 6 and paths[-1] == Path("own.tar")
        assert [remote.urls.get(path) for path in paths] == [
            "https://a.org/d/0.tar?key=a*b", "https://a.org/d/1.tar?key=a*b", "s3://bucket/0.tar",
            "pipe:cat x.tar", "pipe:cat y.tar", None,
        ]  # fmt: skip
        with pytest.raises(ConfigError, match="is named twice"):
            shard_paths("laion", ["s3://bucket/0.tar"] * 2, RemoteShards(tmp_path))

    @pytest.mark.parametrize(
        ("patterns", "message"),
        [
            (None, "a pattern such as"),
            ([], "a pattern such as"),
            ([3], "a pattern such as"),
            ("{0..3.tar", "unbalanced braces"),
            ("nowhere/*.tar", r"no file matches 'nowhere/\*\.tar'.*MINIGPT4_DATA"),
            (["0.tar", "{0..1}.tar"], "0.tar is named twice"),
        ],
    )
    def test_mistakes_name_the_key(self, patterns, message: str) -> None:
        with pytest.raises(ConfigError, match=rf"^datasets\.laion\.shards: .*{message}"):
            shard_paths("laion", patterns)


def members(path: Path, *, names: bool = True) -> list[tuple[str, str]]:
    """What the rows point at: (image's member, caption's member)."""
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


class TestScan:
    def test_rows_point_at_images_and_captions(self, tmp_path: Path) -> None:
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

    def test_names_longer_than_a_header_and_upper_case(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tar"
        long = "d" * 90 + "/" + "k" * 150
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
            for name in (f"{long}.JPG", f"{long}.TXT"):
                info = tarfile.TarInfo(name)
                info.size = 3
                tar.addfile(info, io.BytesIO(b"abc"))
        assert members(path) == [(f"{long}.JPG", f"{long}.TXT")]

    def test_incomplete_samples_are_counted(self, tmp_path: Path) -> None:
        found = scan(write_shard(tmp_path / "a.tar", [("1", {"jpg": b"x"}), ("2", {"txt": b"x"}), *numbered(3, 2)]))
        assert (len(found.rows), found.without_caption, found.without_image) == (2, 1, 1)

    @pytest.mark.parametrize("where", ["image", "caption", "padding", "header", "boundary"])
    def test_a_truncated_file_keeps_complete_samples(self, tmp_path: Path, where: str) -> None:
        path = write_shard(tmp_path / "a.tar", numbered(0, 4))
        third, caption, length = (int(scan(path).rows[name][2]) for name in ("picture", "caption", "caption_bytes"))
        cuts = {"image": third + 520, "caption": caption + length - 1}
        cut = (cuts | {"padding": third - 3, "header": third + 100, "boundary": third})[where]
        path.write_bytes(path.read_bytes()[:cut])
        found = scan(path)
        assert found.damage is not None and "truncated" in found.damage and "byte" in found.damage
        assert len(found.rows) == 2

    def test_damage_in_the_middle_is_no_end(self, tmp_path: Path) -> None:
        path = write_shard(tmp_path / "a.tar", numbered(0, 4))
        content = bytearray(path.read_bytes())
        third = int(scan(path).rows["picture"][2])
        content[third : third + 512] = b"\xff" * 512
        path.write_bytes(content)
        found = scan(path)
        assert len(found.rows) == 2
        assert found.damage is not None and f"damaged at byte {third:,}" in found.damage

    @pytest.mark.parametrize("content", [b"", b"no tar file, but long enough to be mistaken for one" * 40])
    def test_something_else_is_no_tar(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.tar").write_bytes(content)
        found = scan(tmp_path / "a.tar")
        assert len(found.rows) == 0 and found.damage is not None and "not a tar file" in found.damage

    @pytest.mark.parametrize("repeated", [["txt"], ["png"], ["png", "txt"], ["json", "json"]])
    def test_equal_neighbouring_keys_are_named(self, tmp_path: Path, repeated: list[str]) -> None:
        """They would become one sample, of the last image and caption."""
        path = tmp_path / "a.tar"
        names = ["1.png", "1.txt", "2.png", "2.txt", *(f"2.{suffix}" for suffix in repeated), "3.png", "3.txt"]
        with tarfile.open(path, "w") as tar:
            for name in names:
                tar.addfile(tarfile.TarInfo(name))
        found = scan(path)
        assert found.damage is not None and "two samples that follow each other have the key 2, " in found.damage
        assert len(found.rows) == 1
        entry = open_index([path], None).entries[path]
        assert entry.problem == f"{found.damage}; 1 complete samples before that"

    def test_a_size_that_leads_back_ends_the_scan(self, tmp_path: Path) -> None:
        info = tarfile.TarInfo("1.png")
        info.size = -1024
        header = info.tobuf(tarfile.GNU_FORMAT)
        path = write_shard(tmp_path / "a.tar", numbered(0, 2))
        path.write_bytes(path.read_bytes()[: 4 * 1024] + header + bytes(1024))
        found = scan(path)
        assert found.damage is not None and "damaged" in found.damage

    def test_hidden_files_and_folders_are_ignored(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tar"
        with tarfile.open(path, "w") as tar:
            folder = tarfile.TarInfo("x.d")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
            for name, content in (
                (".hidden.jpg", b"x"),
                ("1.png", encoded_image(1)),
                ("1.txt", b"x"),
                ("README", b"x"),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        assert members(path) == [("1.png", "1.txt")]


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that are scanned."""
    names: list[str] = []

    def counting(path: Path):
        names.append(path.name)
        return scan(path)

    monkeypatch.setattr(index_module, "scan", counting)
    return names


class TestIndex:
    def test_it_is_made_once_beside_the_shards(self, shards: list[Path], scanned: list[str]) -> None:
        first = open_index(shards, None)
        assert scanned == [path.name for path in shards]
        again = open_index(shards, None)
        assert len(scanned) == 5 and again.entries == first.entries
        assert first.folder == shards[0].parent / FOLDER
        assert [entry.samples for entry in again.entries.values()] == [6] * 5
        for path in shards:
            assert (again.rows(path) == scan(path).rows).all()

    def test_a_changed_shard_is_scanned_again(self, shards: list[Path], scanned: list[str]) -> None:
        open_index(shards, None)
        write_shard(shards[2], numbered(0, 3))
        os.utime(shards[3], ns=(1, 1))  # the same size
        found = open_index(shards, None)
        assert scanned[5:] == ["00002.tar", "00003.tar"]
        assert [entry.samples for entry in found.entries.values()] == [6, 6, 3, 6, 6]

    def test_shards_added_later_and_moved_together(
        self, shards: list[Path], scanned: list[str], tmp_path: Path
    ) -> None:
        open_index(shards[:2], None)
        open_index(shards, None)
        assert len(scanned) == 5
        shutil.move(shards[0].parent, tmp_path / "moved")
        moved = [tmp_path / "moved" / path.name for path in shards]
        assert len(open_index(moved, None).entries) == 5 and len(scanned) == 5

    def test_equal_names_in_two_folders(self, tmp_path: Path) -> None:
        one = make_shards(tmp_path / "one", 1)
        two = [write_shard(tmp_path / "two" / "00000.tar", numbered(0, 2))]
        found = open_index([*one, *two], tmp_path / "index")
        assert [len(found.rows(path)) for path in (*one, *two)] == [6, 2]

    def test_several_processes_find_the_same(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        shards = make_shards(tmp_path / "data", 3)
        alone = open_index(shards, tmp_path / "alone", processes=1)
        monkeypatch.setattr(index_module, "SERIAL_BYTES", 0)
        shared = open_index(shards, tmp_path / "shared", processes=2)
        assert shared.entries == alone.entries
        assert all((shared.rows(path) == alone.rows(path)).all() for path in shards)

    def test_an_indexing_that_was_killed_resumes(
        self, shards: list[Path], scanned: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(index_module, "SAVE_SECONDS", -1.0)

        def killed(path: Path):
            if path == shards[3]:
                raise KeyboardInterrupt
            return scan(path)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(index_module, "scan", killed)
            open_index(shards, None)
        open_index(shards, None)
        assert scanned == ["00003.tar", "00004.tar"]

    def test_problems_are_named(self, shards: list[Path]) -> None:
        shards[0].unlink()
        write_shard(shards[1], [(key, {"png": members["png"]}) for key, members in numbered(0, 4)])
        shards[2].write_bytes(shards[2].read_bytes()[:1700])
        shards[3].write_bytes(b"")
        problems = open_index(shards, None).problems()
        assert list(problems) == shards[:4]
        assert problems[shards[0]] == "it does not exist"
        assert problems[shards[1]].startswith("none of its 4 images has a caption")
        assert problems[shards[2]].startswith("truncated") and "complete samples before that" not in problems[shards[2]]
        assert problems[shards[3]].startswith("not a tar file")

    def test_a_shard_that_cannot_be_read_is_tried_again(
        self, shards: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refused(path: Path):
            raise PermissionError(13, "Permission denied")

        with monkeypatch.context() as patched:
            patched.setattr(index_module, "scan", refused)
            assert open_index(shards[:1], None).problems() == {shards[0]: "it cannot be read (Permission denied)"}
        assert open_index(shards[:1], None).problems() == {}

    def test_no_shard_at_all(self, tmp_path: Path) -> None:
        found = open_index([tmp_path / "0.tar"], None)
        assert not found.entries and list(found.problems()) == [tmp_path / "0.tar"]

    @pytest.mark.parametrize("content", ["", "[]", '{"format": 1, "shards": {"a": {"size": 1}}}', '{"format": 0}'])
    def test_a_table_of_another_form_is_made_again(self, shards: list[Path], scanned: list[str], content: str) -> None:
        folder = open_index(shards, None).folder
        (folder / "shards.json").write_text(content)
        assert len(open_index(shards, None).entries) == 5
        assert len(scanned) == 10 and len(json.loads((folder / "shards.json").read_text())["shards"]) == 5

    def test_a_folder_that_cannot_be_written_names_the_key(self, shards: list[Path], tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(DataError, match=r"cannot be written to .*file.*datasets\.NAME\.shard_index"):
            open_index(shards, tmp_path / "file")

    @pytest.mark.parametrize("value", ['"6"', "6.5", "null", "-2", "[]", "true", "9" * 19])
    def test_a_table_of_damaged_numbers_is_made_again(self, shards: list[Path], scanned: list[str], value: str) -> None:
        file = open_index(shards, None).folder / "shards.json"
        file.write_text(file.read_text().replace('"samples": 6', f'"samples": {value}', 1))
        assert [entry.samples for entry in open_index(shards, None).entries.values()] == [6] * 5
        assert len(scanned) == 10

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00\x05\x00{'de'"])
    def test_damaged_rows_say_what_to_do(self, shards: list[Path], content: bytes) -> None:
        found = open_index(shards, None)
        for file in found.folder.glob("*.npy"):
            file.write_bytes(content)
        with pytest.raises(DataError, match=r"index .*\.npy cannot be read .*delete"):
            found.rows(shards[0])

    def test_rows_of_another_shard_are_refused(self, shards: list[Path]) -> None:
        found = open_index(shards, None)
        file = next(found.folder.glob("00000.tar*.npy"))
        np.save(file, np.load(file)[:5])
        with pytest.raises(DataError, match="6 rows of another form are expected"):
            found.rows(shards[0])

    def test_a_lost_part_of_the_index_says_what_to_do(self, shards: list[Path]) -> None:
        found = open_index(shards, None)
        for file in found.folder.glob("*.npy"):
            file.unlink()
        with pytest.raises(DataError, match=r"index .*\.npy cannot be read .*delete"):
            found.rows(shards[0])

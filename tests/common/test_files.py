from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from minigpt4.common.errors import DataError
from minigpt4.common.files import (
    parse_json,
    read_appended,
    read_json,
    read_lines,
    read_text,
    remove_temporary_files,
    replace_lone_surrogates,
    write_atomically,
    write_json,
    write_text,
    writing,
)

PAIR = "\ud83d\ude00"
"""One character as JSON escapes it: two surrogates."""


class TestWriting:
    def test_the_file_and_its_folders_appear(self, tmp_path: Path) -> None:
        path = tmp_path / "a" / "b.txt"
        write_atomically(path, lambda temporary: temporary.write_text("x"))
        assert path.read_text() == "x"
        assert list(path.parent.iterdir()) == [path]

    def test_a_failed_write_leaves_the_old_file_and_nothing_else(self, tmp_path: Path) -> None:
        path = tmp_path / "b.txt"
        path.write_text("old")

        def fail(temporary: Path) -> None:
            temporary.write_text("half")
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_atomically(path, fail)
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]

    def test_others_may_read_it_as_far_as_the_umask_allows(self, tmp_path: Path) -> None:
        before = os.umask(0o027)
        try:
            write_text(tmp_path / "a.txt", "x")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640

    def test_text_is_utf8_and_what_cannot_be_encoded_a_question_mark(self, tmp_path: Path) -> None:
        write_text(tmp_path / "a.txt", "ä\ud800\r\n")
        assert (tmp_path / "a.txt").read_bytes() == "ä?\r\n".encode()

    def test_json_has_null_for_what_is_no_number(self, tmp_path: Path) -> None:
        write_json(tmp_path / "a.json", {1: [float("nan"), (float("-inf"), 2.5)], "ä": None})
        text = (tmp_path / "a.json").read_text(encoding="utf-8")
        assert json.loads(text) == {"1": [None, [None, 2.5]], "ä": None}
        assert "ä" in text and text.endswith("}\n")

    def test_only_the_temporary_files_of_a_name_are_removed(self, tmp_path: Path) -> None:
        kept = [tmp_path / name for name in ("checkpoint_1.pth", ".log.txt.abc.tmp", ".checkpoint_1.pth.mine")]
        for path in (*kept, tmp_path / ".checkpoint_1.pth.abc.tmp", tmp_path / ".checkpoint_2.pth.def.tmp"):
            path.touch()
        remove_temporary_files(tmp_path, "checkpoint_*.pth")
        assert sorted(tmp_path.iterdir()) == sorted(kept)
        remove_temporary_files(tmp_path / "none", "*")

    def test_a_file_that_another_process_writes_now_stays(self, tmp_path: Path) -> None:
        def write(temporary: Path) -> None:
            remove_temporary_files(tmp_path, "a.txt")
            temporary.write_text("a")

        write_atomically(tmp_path / "a.txt", write)
        assert (tmp_path / "a.txt").read_text() == "a"


class TestReading:
    def test_a_byte_order_mark_is_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_bytes("\ufeffä".encode())
        assert read_text(tmp_path / "a.txt") == "ä"

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"fine\n\xff\n", "line 2: not UTF-8"),
            (b'{"a": 1,\n"b" 2}', r"line 2: broken JSON \(Expecting ':' delimiter at column 5\)"),
            (b'{"a": 1}\n{"a": 2}', "line 2: broken JSON.*should be called .jsonl"),
            (b'{"a": {"b": 1, "b": 2}}', "the key 'b' comes twice"),
            (b"[" * 200_000, "nested too deeply"),
            (b"9" * 5000, "the JSON cannot be read"),
        ],
    )
    def test_a_broken_file_is_named_with_the_place(self, tmp_path: Path, content: bytes, message: str) -> None:
        path = tmp_path / "a.json"
        path.write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            read_json(path)
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)

    @pytest.mark.parametrize("read", [read_text, read_json, lambda path: list(read_appended(path))])
    def test_a_folder_cannot_be_read(self, tmp_path: Path, read: Callable[[Path], Any]) -> None:
        with pytest.raises(DataError, match=f"{tmp_path} cannot be read: "):
            read(tmp_path)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"no\.json does not exist"):
            read_json(tmp_path / "no.json")

    def test_what_was_written_comes_back(self, tmp_path: Path) -> None:
        content = {"a": [1, 2.5, None, "ä"], "b": {"c": True}}
        write_json(tmp_path / "a.json", content)
        assert read_json(tmp_path / "a.json") == content


class TestAppended:
    def test_lines_with_their_numbers_without_one_that_was_being_written(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        path.write_bytes(b'{"a": 1}\n\n2\r\n{"b": "\xc3')
        assert list(read_appended(path)) == [(1, {"a": 1}), (3, 2)]

    @pytest.mark.parametrize("line", [b"{", b"[" * 200_000, b"9" * 5000, b"\xff"])
    def test_a_complete_line_must_be_json(self, tmp_path: Path, line: bytes) -> None:
        path = tmp_path / "a.jsonl"
        path.write_bytes(b"1\n" + line + b"\n3\n")
        with pytest.raises(DataError, match=r"a\.jsonl, line 2: broken JSON; restore the file, or delete this line"):
            list(read_appended(path))

    def test_no_file_has_no_lines(self, tmp_path: Path) -> None:
        assert list(read_appended(tmp_path / "a.jsonl")) == []


@pytest.mark.parametrize(("text", "expected"), [("ä", "ä"), (f"a{PAIR}b", "a😀b"), ("a\ud800b", "a\ufffdb")])
def test_surrogates_become_characters(text: str, expected: str) -> None:
    assert replace_lone_surrogates(text) == expected


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_as_on_any_system(tmp_path: Path, end: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(end.join(["\ufeffa\u2028b\u0085c", "", " \t", "d"]).encode())
    assert list(read_lines(path)) == [(1, "a\u2028b\u0085c"), (4, "d")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' comes twice in one object"),
        ('{"a": }', r"broken JSON \(Expecting value at column 7\)"),
        ("[" * 200_000, "nested too deeply"),
        ("9" * 5000, "the JSON cannot be read"),
    ],
)
def test_a_line_that_is_no_json_says_why(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_json(text)


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "a.txt"
    with pytest.raises(DataError, match=f"^{path} cannot be written: [^\n]+$"), writing(path):
        write_text(path, "x")
    with pytest.raises(DataError, match=f"^{path} cannot be written: No space left on device"), writing(path):
        raise SafetensorError("No space left on device (os error 28)")
    with pytest.raises(DataError, match="another problem"), writing(path):
        raise DataError("another problem")

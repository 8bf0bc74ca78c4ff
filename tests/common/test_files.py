from __future__ import annotations

from pathlib import Path

import pytest

from minigpt4.common.files import write_atomically


def test_the_file_and_its_folders_appear(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    write_atomically(path, lambda temporary: temporary.write_text("x"))
    assert path.read_text() == "x"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "b.txt"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]

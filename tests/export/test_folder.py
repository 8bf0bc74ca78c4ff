"""Folders that appear when they are complete, and weights written a shard at a time."""

from __future__ import annotations

import json
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minigpt4.common.errors import ConfigError, DataError
from minigpt4.export import folder as folder_module
from minigpt4.export.folder import LazyTensor, check_space, new_folder_of, write_weights


def test_names_that_no_folder_can_get(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="link exists; name a new folder"), new_folder_of(tmp_path / "link"):
        pass
    with pytest.raises(DataError, match="cannot be written: File name too long"), new_folder_of(tmp_path / ("n" * 300)):
        pass


def test_a_folder_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "made" / "out"
    with pytest.raises(KeyboardInterrupt), new_folder_of(out) as unfinished:
        (unfinished / "half").touch()
        raise KeyboardInterrupt
    assert not list(out.parent.iterdir())
    killed = out.parent / ".out.partial"
    killed.mkdir()
    (killed / "stale").touch()
    with new_folder_of(out) as unfinished:
        assert not out.exists()
        (unfinished / "file").touch()
        with pytest.raises(DataError, match="is writing to"), new_folder_of(out):
            pass
        assert (unfinished / "file").exists()  # the other one has not touched it
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["file"]
    with pytest.raises(ConfigError, match="exists"), new_folder_of(out):
        pass


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"), new_folder_of(tmp_path / "file" / "out"):
        pass


def test_a_folder_made_in_the_meantime_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="exists"), new_folder_of(out):
        out.mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    tensors = {"a": LazyTensor((1024, 1024, 1024), torch.float16, torch.empty)}
    monkeypatch.setattr(folder_module.shutil, "disk_usage", lambda _: usage(0, 0, 2 * 2**30))
    with pytest.raises(DataError, match=r"takes 2\.1 GiB, and 2\.0 GiB are free"):
        check_space(tensors, tmp_path / "new" / "out")
    monkeypatch.setattr(folder_module.shutil, "disk_usage", lambda _: usage(0, 0, 3 * 2**30))
    check_space(tensors, tmp_path / "new" / "out")


def test_weights_are_made_when_their_shard_is_written(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    def lazily(name: str) -> LazyTensor:
        def make() -> torch.Tensor:
            seen.append((name, len(list(tmp_path.glob("*.safetensors")))))
            return torch.full((4, 4), float(len(seen))).T

        return LazyTensor((4, 4), torch.float32, make)

    write_weights({name: lazily(name) for name in "abc"}, tmp_path, shard_bytes=128)
    assert seen == [("a", 0), ("b", 0), ("c", 1)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 3 * 64
    assert list(index["weight_map"].values()) == [f"model-0000{n}-of-00002.safetensors" for n in (1, 1, 2)]
    assert load_file(tmp_path / index["weight_map"]["c"])["c"][0, 0] == 3

"""A cache whose files are damaged, or cannot be written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from minigpt4.common.errors import DataError
from minigpt4.datasets.feature_cache import FeatureCache, check_identity, write_shard

IDENTITY = {"transform": "square", "dtype": "float32"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cache of three images."""
    folder = tmp_path / "cache"
    check_identity(folder, IDENTITY)
    write_shard(folder, ["a.png", "\udce9.png", "c.png"], [torch.full((2, 4), float(n)) for n in range(3)])
    return folder


def test_features_come_back(folder: Path) -> None:
    cache = FeatureCache(folder, IDENTITY)
    assert len(cache) == 3 and "b.png" not in cache
    assert torch.equal(cache.get("\udce9.png"), torch.ones(2, 4, dtype=torch.float16))


@pytest.mark.parametrize("content", ["", "{", "[]", '["transform"]', "3", '{"dtype": 1, "dtype": 2}', "[" * 5000])
def test_a_damaged_identity_says_what_to_do(folder: Path, content: str) -> None:
    (folder / "identity.json").write_text(content)
    with pytest.raises(DataError) as caught:
        FeatureCache(folder, IDENTITY)
    message = str(caught.value)
    assert message.startswith(f"the feature cache {folder} is damaged (") and "delete the folder" in message
    assert "\n" not in message


def test_an_identity_that_cannot_be_read(folder: Path) -> None:
    (folder / "identity.json").unlink()
    (folder / "identity.json").mkdir()
    with pytest.raises(DataError, match=r"is damaged .* delete the folder"):
        check_identity(folder, IDENTITY)


@pytest.mark.parametrize("content", ["{}", '{"transform": "square"}', '{"transform": [1], "dtype": {"a": 1}}'])
def test_an_identity_that_lacks_something_is_stale(folder: Path, content: str) -> None:
    (folder / "identity.json").write_text(content)
    with pytest.raises(DataError, match=r"is stale: dtype was .*, is float32; .* delete this one"):
        check_identity(folder, IDENTITY)


@pytest.mark.parametrize(
    "metadata",
    [
        {"names": '["a", "b", "c"]', "crc32": "[1]"},
        None,
        {},
        {"names": "["},
        {"names": "[" * 5000},
        {"names": "3"},
        {"names": '["a"]'},
        {"names": "[[1], 2, 3]"},
    ],
)
def test_a_shard_without_its_names_is_named(folder: Path, metadata: dict[str, str] | None) -> None:
    save_file({"queries": torch.zeros(3, 2, 4)}, folder / "x.safetensors", metadata=metadata)
    with pytest.raises(DataError, match=r"x\.safetensors is broken .* delete it to compute it again"):
        FeatureCache(folder, IDENTITY)


def test_damaged_features_are_noticed(folder: Path) -> None:
    (shard,) = folder.glob("*.safetensors")
    intact = shard.read_bytes()
    shard.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    cache = FeatureCache(folder, IDENTITY)
    assert torch.equal(cache.get("a.png"), torch.zeros(2, 4, dtype=torch.float16))
    with pytest.raises(DataError, match=r"is broken \(wrong checksum of the features of c\.png\); delete it"):
        cache.get("c.png")
    shard.write_bytes(intact.replace(b"c.png", b"a.png"))
    with pytest.raises(DataError, match=r"features of a\.png"):
        FeatureCache(folder, IDENTITY).get("a.png")


def test_shards_without_checksums_are_read(folder: Path) -> None:
    save_file({"queries": torch.ones(1, 2, 4)}, folder / "x.safetensors", metadata={"names": '["x.png"]'})
    assert torch.equal(FeatureCache(folder, IDENTITY).get("x.png"), torch.ones(2, 4))


def test_a_shard_without_its_tensor_is_named(folder: Path) -> None:
    save_file({"other": torch.zeros(1)}, folder / "x.safetensors", metadata={"names": json.dumps(["a"])})
    with pytest.raises(DataError, match=r"x\.safetensors is broken"):
        FeatureCache(folder, IDENTITY)


@pytest.mark.parametrize(
    "write",
    [lambda folder: check_identity(folder, IDENTITY), lambda folder: write_shard(folder, ["a"], [torch.zeros(1, 1)])],
)
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, write: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=f"^{tmp_path}/file/cache.* cannot be written: "):
        write(tmp_path / "file" / "cache")

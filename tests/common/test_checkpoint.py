from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from minigpt4.common.checkpoint import BLOCK_BYTES, fingerprint, model_state, read_checkpoint, write_checkpoint
from minigpt4.common.errors import CheckpointError

STATE = {"a": torch.arange(3.0), "b": torch.zeros(2, 2)}


class Unsafe:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("ran",)


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a" / "c.pth"
    write_checkpoint(path, {"model": STATE, "epoch": 3, "config": {"run": {"seed": 1}}})
    content = read_checkpoint(path)
    assert content["epoch"] == 3 and content["config"] == {"run": {"seed": 1}}
    assert torch.equal(content["model"]["a"], STATE["a"])


def test_safetensors_too(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "c.safetensors")
    assert torch.equal(read_checkpoint(str(tmp_path / "c.safetensors"))["a"], STATE["a"])


def test_files_of_old_torch_are_read_without_mapping(tmp_path: Path) -> None:
    torch.save({"model": STATE}, tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_checkpoint(tmp_path / "c.pth")["model"]["a"], STATE["a"])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 3, 100])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str, kept: int) -> None:
    path = tmp_path / f"c{suffix}"
    if suffix == ".pth":
        write_checkpoint(path, {"model": STATE})
    else:
        save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"c\.\w+ is .*copy") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": Unsafe()}, tmp_path / "zipped.pth")
    torch.save({"model": Unsafe()}, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Unsafe(), protocol=2))
    for name in ("zipped.pth", "legacy.pth", "plain.pth"):
        with pytest.raises(CheckpointError, match=name):
            read_checkpoint(tmp_path / name)
    assert capsys.readouterr().out == ""


def test_other_content_and_missing_files_are_named(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match=r"list\.pth: a mapping .* is expected, found list"):
        read_checkpoint(tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match=r"no\.pth does not exist"):
        read_checkpoint(tmp_path / "no.pth")


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s, "epoch": 1}, lambda s: {"state_dict": s}])
@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
def test_the_tensors_are_found_under_wrappers(wrap: Any, prefix: str) -> None:
    found = model_state(wrap({f"{prefix}{name}": tensor for name, tensor in STATE.items()}))
    assert list(found) == ["a", "b"] and found["a"] is STATE["a"]


def test_a_prefix_that_only_some_names_have_stays() -> None:
    assert list(model_state({"module.a": STATE["a"], "b": STATE["b"], "epoch": 1})) == ["module.a", "b"]


class TestFingerprint:
    def test_it_depends_on_content_and_size_only(self, tmp_path: Path) -> None:
        for name, content in (("a", b"x" * 100), ("b", b"x" * 100), ("c", b"x" * 101), ("d", b"x" * 99 + b"y")):
            (tmp_path / name).write_bytes(content)
        a, b, c, d = (fingerprint(tmp_path / name) for name in "abcd")
        assert a == b and len({a, c, d}) == 3 and len(a) == 16

    def test_blocks_of_a_large_file_are_compared_up_to_its_last_byte(self, tmp_path: Path) -> None:
        content = bytearray(40 * BLOCK_BYTES)
        (tmp_path / "a").write_bytes(content)
        for place in (0, len(content) - 1):
            changed = content.copy()
            changed[place] = 1
            (tmp_path / "b").write_bytes(changed)
            assert fingerprint(tmp_path / "a") != fingerprint(str(tmp_path / "b"))

    def test_of_a_folder_the_weight_files_count(self, tmp_path: Path) -> None:
        save_file(STATE, tmp_path / "model.safetensors")
        before = fingerprint(tmp_path)
        (tmp_path / "README.md").write_text("x")
        assert fingerprint(tmp_path) == before
        (tmp_path / "more.bin").write_bytes(b"x")
        assert fingerprint(tmp_path) != before


def test_write_checkpoint_is_atomic(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    write_checkpoint(path, {"model": {"a": torch.ones(2)}, "epoch": 3})
    with pytest.raises(AttributeError):
        write_checkpoint(path, {"model": lambda: None})  # not picklable: writing fails half way
    assert read_checkpoint(path)["epoch"] == 3
    assert [file.name for file in tmp_path.iterdir()] == ["c.pth"]

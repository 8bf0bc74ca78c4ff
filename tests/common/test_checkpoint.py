from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from minigpt4.common.checkpoint import (
    BLOCK_BYTES,
    fingerprint,
    frozen_identity,
    model_state,
    read_checkpoint,
    read_projection,
    seeded_weights,
    write_checkpoint,
    write_safetensors,
)
from minigpt4.common.errors import CheckpointError
from minigpt4.common.files import asset

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


def damaged_copies(content: bytes, flipped: int, copies: int = 300) -> Iterator[bytes]:
    """The content with one random bit of its first `flipped` bytes flipped, and cut at a random place."""
    rng = Random("damage")
    for _ in range(copies):
        flip = bytearray(content)
        flip[rng.randrange(flipped)] ^= 1 << rng.randrange(8)
        yield bytes(flip)
        yield content[: rng.randrange(len(content))]


def same(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    return bool(one == two)


def test_a_damaged_checkpoint_is_refused_or_reads_back_equal(tmp_path: Path) -> None:
    source = Path(asset("tiny/aligned.pth"))
    expected, path = read_checkpoint(source), tmp_path / "c.pth"
    refused = 0
    for content in damaged_copies(source.read_bytes(), source.stat().st_size):
        path.write_bytes(content)
        try:
            found = read_checkpoint(path)
        except CheckpointError as error:
            assert "c.pth" in str(error) and "\n" not in str(error)
            refused += 1
        else:
            assert same(found, expected)
    assert refused > 500


@pytest.mark.parametrize("record", ["data.pkl", "data/0"])
def test_a_flipped_bit_of_the_content_is_noticed(tmp_path: Path, record: str) -> None:
    path = tmp_path / "c.pth"
    write_checkpoint(path, {"model": {"a": torch.full((16,), 3.0)}, "epoch": 12345})
    content = bytearray(path.read_bytes())
    wanted = {"data.pkl": (12345).to_bytes(2, "little"), "data/0": torch.full((4,), 3.0).numpy().tobytes()}[record]
    content[content.index(wanted)] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"c\.pth is damaged \(wrong checksum of \S+/{record}\)"):
        read_checkpoint(path)


def test_a_damaged_header_of_safetensors_raises_no_other_error(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_file(STATE, path, metadata={"prompt_template": "{}"})
    original = path.read_bytes()
    refused = 0
    for content in damaged_copies(original, 8 + int.from_bytes(original[:8], "little")):
        path.write_bytes(content)
        try:
            read_projection(path)
        except CheckpointError as error:
            assert "c.safetensors" in str(error)
            refused += 1
    assert refused > 300


def test_equal_content_has_equal_bytes_in_safetensors(tmp_path: Path) -> None:
    metadata = {f"key {number}": f'a \u2028, a " and 日本 {number}' for number in range(20)}
    for number in range(3):
        write_safetensors(tmp_path / f"{number}.safetensors", STATE, metadata)
    assert len({(tmp_path / f"{number}.safetensors").read_bytes() for number in range(3)}) == 1
    assert read_projection(tmp_path / "0.safetensors")[1] == metadata


def test_a_changed_bit_of_safetensors_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    write_safetensors(path, STATE, {"prompt_template": "{}"})
    intact = path.read_bytes()
    assert read_projection(path)[1] == {"prompt_template": "{}"}
    for place in (intact.index(b'"{}"') + 1, len(intact) - 1):
        path.write_bytes(intact[:place] + bytes([intact[place] ^ 1]) + intact[place + 1 :])
        with pytest.raises(CheckpointError, match=r"c\.safetensors is damaged \(wrong checksum\)"):
            read_projection(path)


def test_a_projection_reads_the_same_from_both_formats(tmp_path: Path) -> None:
    metadata = {"prompt_template": "{}", "num_query_token": "32"}
    write_checkpoint(tmp_path / "c.pth", {"model": STATE, "epoch": 3, "metadata": metadata})
    save_file(STATE, tmp_path / "c.safetensors", metadata=metadata)
    for name in ("c.pth", "c.safetensors"):
        state, found = read_projection(tmp_path / name)
        assert same(dict(sorted(state.items())), STATE) and found == metadata
    write_checkpoint(tmp_path / "published.pth", {"model": STATE})
    assert read_projection(str(tmp_path / "published.pth"))[1] == {}


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


def test_random_frozen_weights_are_the_same_each_time_and_leave_the_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with seeded_weights():
        first = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with seeded_weights():
        assert torch.equal(torch.rand(3), first)


def test_random_frozen_weights_are_identified_by_what_they_are_drawn_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "c.pth"
    file.write_bytes(b"x")
    assert (
        frozen_identity(str(file), {"blocks": "2"}) == frozen_identity(str(file), {"blocks": "3"}) == fingerprint(file)
    )
    first = frozen_identity(None, {"blocks": "2"})
    assert first.startswith("random:") and first == frozen_identity(None, {"blocks": "2"})
    assert first != frozen_identity(None, {"blocks": "3"})
    monkeypatch.setattr("minigpt4.common.checkpoint.RANDOM_SEED", 1)
    assert first != frozen_identity(None, {"blocks": "2"})

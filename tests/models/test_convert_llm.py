"""A language model's .bin shards become safetensors that hold the same tensors."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from minigpt4.common.fingerprint import fingerprint
from minigpt4.common.schema import LowResource
from minigpt4.models import convert_llm
from minigpt4.models.llm import build_llm
from tests.models.parity import Case

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def write_bins(folder: Path, tensors: dict[str, Tensor], legacy: bool = False) -> None:
    """Two .bin shards with their index, the first in the old format without zip where `legacy` is set."""
    names = sorted(tensors)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    weight_map = {}
    for number, half in enumerate(halves, start=1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        zipped = not (legacy and number == 1)
        torch.save({name: tensors[name] for name in half}, folder / file, _use_new_zipfile_serialization=zipped)
        weight_map |= dict.fromkeys(half, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.fixture
def tensors(parity_a: Case) -> dict[str, Tensor]:
    return load_file(parity_a.folder / "llama" / "model.safetensors")


@pytest.fixture
def folder(parity_a: Case, tensors: dict[str, Tensor], tmp_path: Path) -> Path:
    """The parity case's language model as two .bin shards."""
    made = tmp_path / "llama"
    made.mkdir()
    for file in (parity_a.folder / "llama").iterdir():
        if file.suffix != ".safetensors":
            (made / file.name).write_bytes(file.read_bytes())
    write_bins(made, tensors)
    return made


def written(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for shard in SHARDS for name, tensor in load_file(folder / shard).items()}


def llm(folder: Path) -> Any:
    return build_llm(folder, LowResource.off, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("legacy", [False, True])
def test_the_same_tensors_and_the_same_model(folder: Path, tensors: dict[str, Tensor], legacy: bool) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"].half()
    write_bins(folder, tensors, legacy)
    before = llm(folder).state_dict()
    convert_llm.main([str(folder)])
    made = written(folder)
    assert set(made) == set(tensors)
    for name, tensor in tensors.items():
        assert made[name].dtype == tensor.dtype, name
        assert torch.equal(made[name], tensor), name
    for bins in folder.glob("*.bin*"):
        bins.unlink()
    after = llm(folder).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_single_file(folder: Path, tensors: dict[str, Tensor]) -> None:
    for bins in folder.glob("*.bin*"):
        bins.unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    convert_llm.main([str(folder)])
    assert set(load_file(folder / "model.safetensors")) == set(tensors)
    assert llm(folder).config.hidden_size == 64


def test_tied_and_sliced_tensors_are_written_whole(folder: Path, tensors: dict[str, Tensor]) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors["model.layers.0.self_attn.q_proj.weight"] = torch.randn(64, 64).t()
    tensors["model.norm.weight"] = torch.full((128,), torch.nan)[::2]
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "pytorch_model.bin.index.json").unlink()
    convert_llm.main([str(folder)])
    made = load_file(folder / "model.safetensors")
    assert torch.equal(made["lm_head.weight"], made["model.embed_tokens.weight"])
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(made[name], tensors[name])
    assert made["model.norm.weight"].isnan().all()


def test_leftovers_are_left_out_with_a_note(
    folder: Path, tensors: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    write_bins(folder, tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    convert_llm.main([str(folder)])
    assert "left out 1 entries" in capsys.readouterr().out
    assert set(written(folder)) == set(tensors)
    assert set(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]) == set(tensors)


def test_a_second_time_there_is_nothing_to_do(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert_llm.main([str(folder)])
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    convert_llm.main([str(folder)])
    assert "nothing to do" in capsys.readouterr().out
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def test_an_interrupted_conversion_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save, calls = convert_llm.save_file, []

    def failing(tensors: dict[str, Tensor], file: Path, **options: Any) -> None:
        calls.append(file)
        if len(calls) == 2:
            Path(file).write_bytes(b"half a fi")
            raise OSError("No space left on device")
        save(tensors, file, **options)

    monkeypatch.setattr(convert_llm, "save_file", failing)
    with pytest.raises(SystemExit):
        convert_llm.main([str(folder)])
    error = capsys.readouterr().err
    assert SHARDS[1] in error and "No space left" in error and "--out" in error
    assert sorted(file.name for file in folder.glob("*safetensors*")) == [SHARDS[0]]
    assert not list(folder.glob(".*"))
    assert llm(folder).config.hidden_size == 64, "the folder still loads, from its .bin files"

    convert_llm.main([str(folder)])
    assert f"{SHARDS[0]}: 15 tensors, is there already" in capsys.readouterr().out
    assert len(calls) == 3, "only the second shard was written again"
    assert (folder / "model.safetensors.index.json").exists()


def test_a_wrong_shard_in_the_way_is_replaced(folder: Path, tensors: dict[str, Tensor]) -> None:
    (folder / SHARDS[0]).write_bytes(b"not a safetensors file")
    convert_llm.main([str(folder)])
    assert set(written(folder)) == set(tensors)


def test_what_does_not_read_back_equal_is_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = convert_llm.save_file
    monkeypatch.setattr(
        convert_llm, "save_file", lambda tensors, *a, **k: save({n: t + 1 for n, t in tensors.items()}, *a, **k)
    )
    with pytest.raises(SystemExit):
        convert_llm.main([str(folder)])
    assert not list(folder.glob("*safetensors*"))


def test_another_folder_is_a_whole_language_model(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "converted"
    before = sorted(file.name for file in folder.iterdir())
    convert_llm.main([str(folder), "--out", str(out)])
    assert sorted(file.name for file in folder.iterdir()) == before
    assert not list(out.glob("*.bin*"))
    assert llm(out).config.hidden_size == 64
    assert (out / "tokenizer.model").exists()


def test_the_identity_stays(folder: Path) -> None:
    """A checkpoint that was trained before the conversion fits after it, also once the .bin files are gone."""
    before = fingerprint(folder)
    convert_llm.main([str(folder)])
    assert fingerprint(folder) == before
    for bins in folder.glob("*.bin*"):
        bins.unlink()
    assert fingerprint(folder) == before


def missing_shard(folder: Path) -> None:
    (folder / "pytorch_model-00002-of-00002.bin").unlink()


def truncated_shard(folder: Path) -> None:
    file = folder / "pytorch_model-00002-of-00002.bin"
    file.write_bytes(file.read_bytes()[:-100])


def promised_tensor(folder: Path) -> None:
    index = folder / "pytorch_model.bin.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.extra.weight"] = "pytorch_model-00002-of-00002.bin"
    index.write_text(json.dumps(content))


def no_weights(folder: Path) -> None:
    for file in folder.glob("*.bin*"):
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (missing_shard, ["pytorch_model-00002-of-00002.bin", "does not exist", "copy the folder again"]),
        (truncated_shard, ["pytorch_model-00002-of-00002.bin", "truncated"]),
        (promised_tensor, ["pytorch_model-00002-of-00002.bin", "model.extra.weight"]),
        (no_weights, ["pytorch_model.bin", "give the folder"]),
    ],
)
def test_errors_name_file_and_cure(
    folder: Path, damage: Any, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    damage(folder)
    with pytest.raises(SystemExit):
        convert_llm.main([str(folder)])
    error = capsys.readouterr().err
    for word in words:
        assert word in error
    assert not (folder / "model.safetensors.index.json").exists()


def test_the_hint_is_given_for_bin_shards_only(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        llm(folder)
    assert f"python -m minigpt4.models.convert_llm {folder}" in caplog.text
    convert_llm.main([str(folder)])
    caplog.clear()
    with caplog.at_level(logging.INFO):
        llm(folder)
    assert "convert_llm" not in caplog.text


def test_safetensors_carry_the_format_that_transformers_asks_for(folder: Path) -> None:
    convert_llm.main([str(folder)])
    with safe_open(folder / SHARDS[0], framework="pt") as file:
        assert file.metadata() == {"format": "pt"}

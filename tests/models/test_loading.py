"""Models and projections from files, and number formats."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from minigpt4.common.checkpoint import write_checkpoint
from minigpt4.common.errors import CheckpointError, ConfigError
from minigpt4.common.schema import Amp, Precision
from minigpt4.models.loading import evaluation_dtype, load_projection, train_precision, with_projection
from tests.models.parity import CPU, Case, build_with


def projection(case: Case) -> dict[str, Tensor]:
    return {name: tensor + 1 for name, tensor in case.model.trainable_state().items()}


@pytest.fixture
def fresh(parity_a: Case) -> Any:
    return build_with(parity_a, ckpt=None)


@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
def test_published_and_wrapped_names(parity_a: Case, fresh: Any, tmp_path: Path, prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in projection(parity_a).items()}
    write_checkpoint(tmp_path / "ckpt.pth", {"model": state})
    load_projection(fresh, tmp_path / "ckpt.pth")
    assert torch.equal(fresh.llama_proj.weight, projection(parity_a)["llama_proj.weight"])


def test_safetensors_projection(parity_a: Case, fresh: Any, tmp_path: Path) -> None:
    save_file(projection(parity_a), tmp_path / "ckpt.safetensors")
    load_projection(fresh, tmp_path / "ckpt.safetensors")
    assert torch.equal(fresh.llama_proj.bias, projection(parity_a)["llama_proj.bias"])


def test_fresh_projection_without_checkpoint(parity_a: Case, fresh: Any) -> None:
    assert not torch.equal(fresh.llama_proj.weight, parity_a.model.llama_proj.weight)
    assert torch.equal(fresh.qformer.query_tokens, parity_a.model.qformer.query_tokens)


def assert_refused(model: Any, path: Path, content: Any, *words: str) -> None:
    torch.save(content, path)
    before = model.llama_proj.weight.clone()
    with pytest.raises(CheckpointError) as caught:
        load_projection(model, path)
    for word in (str(path), *words):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert torch.equal(model.llama_proj.weight, before)


def test_projection_for_another_width(fresh: Any, tmp_path: Path) -> None:
    state = {"llama_proj.weight": torch.zeros(5120, 48), "llama_proj.bias": torch.zeros(5120)}
    assert_refused(fresh, tmp_path / "c.pth", {"model": state}, "(5120, 48)", "width 64", "model.llama_model")


def test_checkpoint_without_projection(fresh: Any, tmp_path: Path) -> None:
    assert_refused(
        fresh, tmp_path / "c.pth", {"model": {"t5_proj.weight": torch.zeros(2, 2)}}, "missing", "t5_proj.weight"
    )


def test_half_a_projection(parity_a: Case, fresh: Any, tmp_path: Path) -> None:
    state = {"llama_proj.weight": projection(parity_a)["llama_proj.weight"]}
    assert_refused(fresh, tmp_path / "c.pth", {"model": state}, "llama_proj.bias")


def test_a_projection_of_stage_1_goes_into_any_template(parity_a: Case, fresh: Any, tmp_path: Path) -> None:
    metadata = {"prompt_template": "{}", "end_sym": "\n"}
    write_checkpoint(tmp_path / "c.pth", {"model": projection(parity_a), "metadata": metadata})
    load_projection(fresh, tmp_path / "c.pth")
    assert torch.equal(fresh.llama_proj.weight, projection(parity_a)["llama_proj.weight"])
    content = {"model": projection(parity_a), "metadata": metadata | {"num_query_token": "7"}}
    assert_refused(fresh, tmp_path / "d.pth", content, "num_query_token")


def test_checkpoint_of_another_template(parity_a: Case, fresh: Any, tmp_path: Path) -> None:
    content = {"model": projection(parity_a), "metadata": {"prompt_template": "[INST] {} [/INST]"}}
    assert_refused(fresh, tmp_path / "c.pth", content, "[INST] {} [/INST]", "model.prompt_template")


def test_other_base_weights_are_a_warning(
    parity_a: Case, fresh: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metadata = fresh.metadata() | {"base.llama_model": "0123456789abcdef"}
    write_checkpoint(tmp_path / "c.pth", {"model": projection(parity_a), "metadata": metadata})
    with caplog.at_level(logging.WARNING):
        load_projection(fresh, tmp_path / "c.pth")
    assert "other files of llama_model" in caplog.text


@pytest.mark.parametrize("key", ["vit_weights", "q_former_model", "llama_model", "ckpt"])
def test_missing_paths_name_key_and_variable(parity_a: Case, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_with(parity_a, **{key: "nowhere/file"})
    assert f"model.{key}" in str(caught.value)
    assert "nowhere/file" in str(caught.value)
    assert "MINIGPT4_WEIGHTS" in str(caught.value)


def test_a_second_projection_shares_the_frozen_parts(parity_a: Case, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c.pth", {"model": projection(parity_a)})
    second = with_projection(parity_a.model, tmp_path / "c.pth")
    assert torch.equal(second.llama_proj.weight, parity_a.model.llama_proj.weight + 1)
    assert second.llama_model is parity_a.model.llama_model and second.qformer is parity_a.model.qformer


def test_an_unknown_architecture(parity_a: Case) -> None:
    with pytest.raises(ConfigError, match=r"unknown model 'minigpt5'; did you mean 'minigpt4'"):
        build_with(parity_a, arch="minigpt5")


def test_a_tokenizer_with_more_tokens_than_the_language_model_embeds(parity_a: Case, tmp_path: Path) -> None:
    folder = shutil.copytree(parity_a.folder / "llama", tmp_path / "llama")
    (folder / "added_tokens.json").write_text('{"<new>": 100000}')
    with pytest.raises(ConfigError, match="has 100001 tokens, the language model embeds"):
        build_with(parity_a, llama_model=str(folder))


@pytest.mark.parametrize(
    ("amp", "precision", "frozen", "reason"),
    [
        (Amp.auto, Precision.auto, torch.float32, "run.amp: auto, off on cpu"),
        (Amp.bf16, Precision.auto, torch.bfloat16, "run.amp: bf16"),
        (Amp.fp16, Precision.auto, torch.float16, "run.amp: fp16"),
        (Amp.bf16, Precision.float16, torch.float16, "run.amp: bf16, model.precision: float16"),
    ],
)
def test_number_formats_of_training(amp: Amp, precision: Precision, frozen: torch.dtype, reason: str) -> None:
    chosen = train_precision(amp, precision, CPU)
    assert (chosen.frozen, chosen.reason) == (frozen, reason)
    assert chosen.scale_loss == (frozen is torch.float16)
    assert ("with a loss scale" in str(chosen)) == chosen.scale_loss


@pytest.mark.parametrize(("capability", "native"), [((8, 0), torch.bfloat16), ((7, 5), torch.float16)])
def test_number_format_of_evaluation_follows_the_device(
    capability: tuple[int, int], native: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert evaluation_dtype(Precision.auto, torch.device("cuda")) == native
    assert evaluation_dtype(Precision.float32, torch.device("cuda")) == torch.float32
    assert evaluation_dtype(Precision.auto, CPU) == torch.float32

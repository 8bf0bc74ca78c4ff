"""`minigpt4 export --language-model-only`: adapters merged into a language model that loads without them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from minigpt4.common.checkpoint import write_checkpoint
from minigpt4.common.errors import ConfigError
from minigpt4.common.schema import LoraConfig
from minigpt4.export.language_model import merge_language_model
from tests.models.parity import Case, build_with, model_config


def test_the_merged_model_answers_as_the_one_with_adapters(parity_v: Case, tmp_path: Path) -> None:
    checkpoint, out = tmp_path / "c.pth", tmp_path / "merged"
    write_checkpoint(checkpoint, {"model": parity_v.model.trainable_state(), "metadata": parity_v.model.metadata()})
    merge_language_model(model_config(parity_v.folder, ckpt=str(checkpoint)), out)
    described = json.loads((out / "language_model" / "config.json").read_text())
    assert (described["architectures"], described["dtype"]) == (["LlamaForCausalLM"], "float16")
    paths = {"llama_model": str(out / "language_model"), "ckpt": str(out / "projection.safetensors")}
    merged = build_with(parity_v, lora=LoraConfig(), **paths)
    plain = build_with(parity_v, lora=LoraConfig(), ckpt=paths["ckpt"])
    with torch.no_grad():
        losses = [each.answer_losses(parity_v.training_batch()) for each in (merged, parity_v.model, plain)]
    assert (losses[0] - losses[1]).abs().max() < 0.1 * (losses[2] - losses[1]).abs().min()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.pth", "merged"]
    with pytest.raises(ConfigError, match="merged exists"):
        merge_language_model(model_config(parity_v.folder), out)


def test_a_model_without_adapters_has_nothing_to_merge(parity_a: Case, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.lora\.r: the model has no adapters to merge"):
        merge_language_model(model_config(parity_a.folder), tmp_path / "merged")
    assert not list(tmp_path.iterdir())

"""`minigpt4 export --language-model-only`: adapters merged into a language model that loads without them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from minigpt4.common.checkpoint import write_checkpoint
from minigpt4.common.errors import ConfigError
from minigpt4.common.schema import LoraConfig
from minigpt4.export.language_model import merge_language_model
from tests.models.parity import Case, build_with, model_config


def test_the_merged_model_answers_as_the_one_with_adapters(parity_v: Case, tmp_path: Path) -> None:
    llama = shutil.copytree(parity_v.folder / "llama", tmp_path / "llama")
    (llama / ".cache").mkdir()
    checkpoint, out = tmp_path / "c.pth", llama / "merged"
    write_checkpoint(checkpoint, {"model": parity_v.model.trainable_state(), "metadata": parity_v.model.metadata()})
    before = sorted(path.name for path in llama.iterdir())
    merge_language_model(model_config(parity_v.folder, ckpt=str(checkpoint), llama_model=str(llama)), out)
    described = json.loads((out / "language_model" / "config.json").read_text())
    assert (described["architectures"], described["dtype"]) == (["LlamaForCausalLM"], "float16")
    paths = {"llama_model": str(out / "language_model"), "ckpt": str(out / "projection.safetensors")}
    merged = build_with(parity_v, lora=LoraConfig(), **paths)
    plain = build_with(parity_v, lora=LoraConfig(), ckpt=paths["ckpt"])
    with torch.no_grad():
        losses = [each.answer_losses(parity_v.training_batch()) for each in (merged, parity_v.model, plain)]
    assert (losses[0] - losses[1]).abs().max() < 0.1 * (losses[2] - losses[1]).abs().min()
    assert sorted(path.name for path in llama.iterdir()) == sorted([*before, "merged"])
    assert not [path for path in (out / "language_model").iterdir() if path.is_dir() or path.name.startswith(".")]
    with pytest.raises(ConfigError, match="merged exists"):
        merge_language_model(model_config(parity_v.folder), out)


def test_a_model_without_adapters_has_nothing_to_merge(parity_a: Case, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.lora\.r: the model has no adapters to merge"):
        merge_language_model(model_config(parity_a.folder), tmp_path / "merged")
    assert not list(tmp_path.iterdir())

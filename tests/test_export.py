"""`python -m minigpt4.export`: adapters merged into a language model that loads without them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from minigpt4.common.checkpoint import write_checkpoint
from minigpt4.common.errors import ConfigError
from minigpt4.common.files import PROJECT
from minigpt4.common.schema import LoraConfig, LowResource
from minigpt4.export import export, main
from tests.models.parity import Case, build_with, model_config


def test_the_merged_model_answers_as_the_one_with_adapters(parity_v: Case, tmp_path: Path) -> None:
    checkpoint, out = tmp_path / "c.pth", tmp_path / "merged"
    write_checkpoint(checkpoint, {"model": parity_v.model.trainable_state(), "metadata": parity_v.model.metadata()})
    export(model_config(parity_v.folder, ckpt=str(checkpoint)), out)
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
        export(model_config(parity_v.folder), out)


def test_what_cannot_be_merged(parity_v: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "merged"
    for changes, message in (
        ({"ckpt": None}, r"name the one with the adapters by --ckpt"),
        ({"low_resource": LowResource.nf4}, r"model\.low_resource: adapters cannot be merged into 4bit weights"),
    ):
        with pytest.raises(ConfigError, match=message):
            export(model_config(parity_v.folder, **changes), out)
    with pytest.raises(SystemExit):
        main(["--cfg-path", str(PROJECT / "eval_configs" / "quickstart.yaml"), "--out", str(out)])
    assert "model.lora.r: the model has no adapters to merge" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

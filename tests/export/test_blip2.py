"""Which parts fit into `Blip2ForConditionalGeneration`, and what becomes of their tensors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from minigpt4.common.errors import ExportError
from minigpt4.common.schema import ModelConfig
from minigpt4.export.blip2 import _language_tensors, blip2_config, blip2_tensors
from minigpt4.models.loading import build_model
from minigpt4.models.lora import add_lora
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.vision import VisionEncoder
from tests.models.parity import CPU, Case, model_config
from tests.models.small_llm import language_model

SMALL: dict[str, Any] = {"embed_dim": 64, "num_heads": 4, "patch_size": 14}


def with_tower(case: Case, name: str, **options: Any) -> MiniGPT4:
    """The model of a fixture with another vision encoder of its width."""
    tower = VisionEncoder(ModelConfig(vit_model=name, image_size=56, vit_blocks=3, vit_args=SMALL | options))
    own = case.model
    return MiniGPT4(tower, own.bridge, own.llama_model, own.encoder, own.query_width)


def exported(model: MiniGPT4) -> dict[str, Any]:
    return blip2_tensors(model, blip2_config(model, image_id=800))


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("eva02_tiny_patch14_224", {}, r"Eva has rotary positions"),
        ("eva_giant_patch14_224", {"use_post_norm": True}, r"blocks of the kind EvaBlockPostNorm"),
        ("eva_giant_patch14_224", {"init_values": 0.1}, r"has besides vision_model\.blocks\.0\.gamma_1"),
        ("eva_giant_patch14_224", {"class_token": False}, r"has no vision_model\.embeddings\.class_embedding"),
        ("vit_base_patch16_clip_quickgelu_224", {}, r"VisionTransformer has the activation QuickGELU"),
        ("vit_base_patch16_clip_224", {}, r"besides vision_model\.norm_pre\.weight"),
        ("vit_base_patch14_reg4_dinov2", {"init_values": None}, r"has besides vision_model\.reg_token"),
    ],
)
def test_towers_that_compute_something_else(parity_a: Case, name: str, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ExportError, match=reason):
        exported(with_tower(parity_a, name, **options))


def test_a_plain_vision_transformer_fits_as_well_as_eva(parity_a: Case) -> None:
    tensors = exported(with_tower(parity_a, "vit_base_patch16_224"))
    assert tensors["vision_model.encoder.layers.2.self_attn.qkv.bias"].shape == (192,)


def test_a_tower_of_another_library_is_named(parity_a: Case) -> None:
    own = parity_a.model
    other: Any = SimpleNamespace(backbone=torch.nn.Linear(1, 1), image_size=56)
    model = SimpleNamespace(visual_encoder=other, **{
        name: getattr(own, name) for name in ("bridge", "llama_model", "encoder", "token_embedding")
    })  # fmt: skip
    with pytest.raises(ExportError, match=r"plain vision transformer, not a Linear.*minigpt4 chat"):
        blip2_config(model, 800)  # type: ignore[arg-type]


def test_a_language_model_that_transformers_takes_nowhere_else(parity_a: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(parity_a.model.llama_model.config), "model_type", "own")
    with pytest.raises(ExportError, match=r"model\.llama_model: .* takes no language model of type 'own'"):
        blip2_config(parity_a.model, 800)


def test_the_vocabulary_grows_by_a_token_that_is_never_the_first_best(parity_a: Case) -> None:
    tensors = exported(parity_a.model)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        own = parity_a.model.llama_model.get_parameter(name)
        grown = tensors[f"language_model.{name}"].make()
        assert torch.equal(grown[:-1], own) and torch.equal(grown[-1], own[0])
        assert tensors[f"language_model.{name}"].shape == tuple(grown.shape)


def test_spare_rows_of_the_vocabulary_are_used(parity_a: Case) -> None:
    config = blip2_config(parity_a.model, image_id=790)
    assert config.text_config.vocab_size == 800 and config.image_token_id == 790
    assert blip2_tensors(parity_a.model, config)["language_model.lm_head.weight"].shape == (800, 64)


def test_tied_embeddings_are_written_once() -> None:
    llm = language_model("qwen2", tie_word_embeddings=True)
    tensors = _language_tensors(llm, 51)
    assert "lm_head.weight" not in tensors
    assert tensors["model.embed_tokens.weight"].shape == (51, 32)


def test_adapters_are_merged_in_float32(parity_v: Case) -> None:
    from minigpt4.common.schema import LoraConfig

    model = build_model(model_config(parity_v.folder), CPU, None, keep_llm_on_cpu=True)
    tensors = _language_tensors(model.llama_model, 800)
    assert not [name for name in tensors if "lora" in name or "base_layer" in name]
    layer = model.llama_model.get_submodule("model.layers.1.self_attn.v_proj")
    added = layer.lora_B["default"].weight.float() @ layer.lora_A["default"].weight.float() * layer.scaling["default"]
    merged = tensors["model.layers.1.self_attn.v_proj.weight"]
    assert merged.dtype is torch.float32 and added.abs().max() > 0
    assert torch.allclose(merged.make(), layer.base_layer.weight.float() + added, atol=1e-6)
    assert tensors["model.layers.1.self_attn.k_proj.weight"].dtype is torch.float16
    biased = language_model("qwen2", attention_bias=True)
    add_lora(biased, LoraConfig(r=2))
    names = set(_language_tensors(biased, 50))
    assert names == set(language_model("qwen2").state_dict()) | {name for name in names if name.endswith(".bias")}

"""Models of a stated size with random weights: ours, and transformers' BLIP-2 holding the same tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from minigpt4.common.schema import ModelConfig
from minigpt4.conversation.template import PromptEncoder, Template
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.qformer import QFormer
from minigpt4.models.vision import VisionEncoder

IMAGE_SIZE = 224
VOCABULARY = 32_000
IMAGE_TOKEN_ID = VOCABULARY - 1
"""Stands for an image embedding in the peer's input ids; no sample uses it as text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Sizes of a model."""

    name: str
    vit_width: int
    vit_blocks: int
    vit_heads: int
    vit_mlp: int
    patch: int
    qformer_width: int
    qformer_layers: int
    qformer_heads: int
    llm_width: int
    llm_layers: int
    llm_heads: int
    llm_mlp: int
    queries: int = 32


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="cpu", vit_width=384, vit_blocks=12, vit_heads=6, vit_mlp=1536, patch=14,
            qformer_width=384, qformer_layers=6, qformer_heads=6,
            llm_width=512, llm_layers=8, llm_heads=8, llm_mlp=1376,
        ),
        Preset(
            name="7b", vit_width=1408, vit_blocks=39, vit_heads=16, vit_mlp=6144, patch=14,
            qformer_width=768, qformer_layers=12, qformer_heads=12,
            llm_width=4096, llm_layers=32, llm_heads=32, llm_mlp=11008,
        ),
        Preset(
            name="13b", vit_width=1408, vit_blocks=39, vit_heads=16, vit_mlp=6144, patch=14,
            qformer_width=768, qformer_layers=12, qformer_heads=12,
            llm_width=5120, llm_layers=40, llm_heads=40, llm_mlp=13824,
        ),
    )
}  # fmt: skip


class NumberTokenizer:
    """A tokenizer for random ids: text is numbers separated by spaces."""

    bos_id: int | None = 1
    eos_id: int | None = 2
    vocab_size = VOCABULARY
    special_names: Mapping[int, str] = MappingProxyType({})

    def encode(self, text: str) -> list[int]:
        """Numbers -> ids."""
        return [int(word) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> numbers."""
        return " ".join(map(str, ids))


def _qformer_options(preset: Preset) -> dict[str, Any]:
    return {
        "hidden_size": preset.qformer_width,
        "num_hidden_layers": preset.qformer_layers,
        "num_attention_heads": preset.qformer_heads,
        "intermediate_size": 4 * preset.qformer_width,
        "cross_attention_frequency": 2,
    }


def _llama_config(preset: Preset) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=preset.llm_width,
        num_hidden_layers=preset.llm_layers,
        num_attention_heads=preset.llm_heads,
        num_key_value_heads=preset.llm_heads,
        intermediate_size=preset.llm_mlp,
        vocab_size=VOCABULARY,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="sdpa",
    )


def build_ours(preset: Preset, dtype: torch.dtype, device: torch.device) -> MiniGPT4:
    """This project's model; the projection in float32, everything else frozen in `dtype`."""
    torch.manual_seed(0)
    with torch.device(device):
        sizes = {
            "embed_dim": preset.vit_width,
            "num_heads": preset.vit_heads,
            "mlp_ratio": preset.vit_mlp / preset.vit_width,
            "patch_size": preset.patch,
        }
        vision = VisionEncoder(ModelConfig(image_size=IMAGE_SIZE, vit_blocks=preset.vit_blocks, vit_args=sizes)).to(
            dtype
        )
        qformer = QFormer(preset.vit_width, preset.queries, _qformer_options(preset)).to(dtype)
        llm = LlamaForCausalLM(_llama_config(preset)).to(dtype)
    qformer.ln_vision.float()
    encoder = PromptEncoder(NumberTokenizer(), Template("{}", ""), preset.queries)
    for module in (vision, qformer, llm):
        module.requires_grad_(False)
    return MiniGPT4(vision, qformer, llm, encoder, preset.qformer_width).eval()


def build_peer(preset: Preset, ours: MiniGPT4, dtype: torch.dtype) -> Blip2ForConditionalGeneration:
    """transformers' BLIP-2 of the same sizes, holding copies of the same weights, all but the projection frozen.

    Args:
        preset: sizes of the model.
        ours: model that holds the weights.
        dtype: number format of the frozen weights.
    """
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=preset.vit_width,
            intermediate_size=preset.vit_mlp,
            num_hidden_layers=preset.vit_blocks,
            num_attention_heads=preset.vit_heads,
            image_size=IMAGE_SIZE,
            patch_size=preset.patch,
            qkv_bias=True,
            layer_norm_eps=1e-6,
        ),
        qformer_config=Blip2QFormerConfig(encoder_hidden_size=preset.vit_width, **_qformer_options(preset)),
        text_config=_llama_config(preset),
        num_query_tokens=preset.queries,
        image_token_index=IMAGE_TOKEN_ID,
    )
    config._attn_implementation = "sdpa"
    with torch.device(ours.device):
        peer = Blip2ForConditionalGeneration(config).to(dtype)
    peer.language_model.load_state_dict(ours.llama_model.state_dict())
    peer.qformer.load_state_dict(ours.bridge.bert.state_dict())
    peer.query_tokens.data.copy_(ours.bridge.query_tokens)
    peer.language_projection.load_state_dict(ours.llama_proj.state_dict())
    peer.language_projection.float()
    peer.generation_config.eos_token_id = 2
    _copy_vision(ours, peer.vision_model)
    peer.requires_grad_(False)
    peer.language_projection.requires_grad_(True)
    return peer.eval()


def _copy_vision(ours: MiniGPT4, theirs: nn.Module) -> None:
    """EVA's names -> BLIP-2's; the final norm of BLIP-2's tower is our ln_vision."""
    source = ours.visual_encoder.backbone.state_dict()
    state: dict[str, Tensor] = {
        "embeddings.class_embedding": source["cls_token"],
        "embeddings.position_embedding": source["pos_embed"],
        "embeddings.patch_embedding.weight": source["patch_embed.proj.weight"],
        "embeddings.patch_embedding.bias": source["patch_embed.proj.bias"],
        "post_layernorm.weight": ours.bridge.ln_vision.weight,
        "post_layernorm.bias": ours.bridge.ln_vision.bias,
    }
    pairs = {
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "attn.proj": "self_attn.projection",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    for block in range(len(ours.visual_encoder.backbone.blocks)):
        here, there = f"blocks.{block}", f"encoder.layers.{block}"
        for own, name in pairs.items():
            for part in ("weight", "bias"):
                state[f"{there}.{name}.{part}"] = source[f"{here}.{own}.{part}"]
        q_bias, v_bias = source[f"{here}.attn.q_bias"], source[f"{here}.attn.v_bias"]
        state[f"{there}.self_attn.qkv.weight"] = source[f"{here}.attn.qkv.weight"]
        state[f"{there}.self_attn.qkv.bias"] = torch.cat([q_bias, torch.zeros_like(q_bias), v_bias])
    theirs.load_state_dict(state)

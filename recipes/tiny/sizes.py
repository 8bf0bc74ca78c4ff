"""Sizes of the tiny model: the values of its model card."""

from __future__ import annotations

from typing import Any

IMAGE_SIZE = 64
PATCH_SIZE = 8
VIT_NAME = "eva_giant_patch14_224"
VIT_BLOCKS = 4
VIT_ARGS: dict[str, Any] = {"embed_dim": 128, "num_heads": 4, "mlp_ratio": 4.0, "patch_size": PATCH_SIZE}
NUM_QUERIES = 16
QFORMER_ARGS: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "cross_attention_frequency": 1,
}
LLAMA_ARGS: dict[str, Any] = {
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "intermediate_size": 512,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 512,
}
VOCABULARY_SIZE = 736

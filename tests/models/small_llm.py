"""Small random language models of any kind that transformers knows."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 50
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}


@cache
def language_model(kind: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = SIZES | {"intermediate_size": 48, "vocab_size": VOCABULARY} | options
    config = AutoConfig.for_model(kind, initializer_range=0.2, **sizes)
    model: nn.Module = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    return model

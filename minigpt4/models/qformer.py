"""The frozen Q-Former: learned queries that read the image features (BLIP-2, arXiv:2301.12597)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from minigpt4.common.checkpoint import (
    load_strictly,
    matches_any,
    model_state,
    read_checkpoint,
    seeded_weights,
    unexpected_keys,
)
from minigpt4.common.errors import CheckpointError, ConfigError, first_few, one_line

LN_VISION_EPS = 1e-5
"""Epsilon of `ln_vision` in LAVIS, torch's default."""
QFORMER_PREFIX = "Qformer.bert."
QFORMER_UNUSED = (
    r"Qformer\.bert\.embeddings\.(word_embeddings|position_embeddings)\.|.*position_ids$",
    r"Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\.",
    r"Qformer\.cls\.|(t5|opt|llm|vision|text)_proj\.|itm_head\.|temp$",
    r"visual_encoder\.|(t5_model|opt_model|llm_model)\.",
)
"""Text branch, heads and other models' projections in BLIP-2's files."""
_RENAMED = (
    (r"^embeddings\.LayerNorm\.", "layernorm."),
    (r"(cross)?attention\.self\.", r"\1attention.attention."),
)
"""Parts of BLIP-2's names and what transformers calls them."""


class QFormer(nn.Module):
    """`ln_vision`, the queries and the query branch of BLIP-2's Q-Former.

    Args:
        vision_width: width of the image features.
        num_queries: number of learned queries (Q).
        options: further fields of `Blip2QFormerConfig`.

    Raises:
        ConfigError: The config has no such field, or no Q-Former can be built with these values.
    """

    def __init__(self, vision_width: int, num_queries: int, options: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        config = _qformer_config(options or {}, encoder_hidden_size=vision_width)
        config._attn_implementation = "sdpa"
        self.width: int = config.hidden_size
        self.ln_vision = nn.LayerNorm(vision_width, eps=LN_VISION_EPS)
        try:
            self.query_tokens = nn.Parameter(torch.zeros(1, num_queries, config.hidden_size))
            self.bert = Blip2QFormerModel(config)
        except Exception as error:  # the fields are checked one by one only; together they can raise anything
            raise _unusable(error) from error
        nn.init.normal_(self.query_tokens, std=config.initializer_range)

    def forward(self, features: Tensor) -> Tensor:
        """Image features (N, P, vision_width) -> (N, Q, width)."""
        normed = self.ln_vision(features.to(self.ln_vision.weight.dtype))
        queries = self.query_tokens.expand(features.shape[0], -1, -1)
        hidden: Tensor = self.bert(
            query_embeds=queries, encoder_hidden_states=normed.to(queries.dtype)
        ).last_hidden_state
        return hidden

    def published_state(self) -> dict[str, Tensor]:
        """All tensors under the names of BLIP-2's files."""
        state = {"query_tokens": self.query_tokens.detach()}
        state |= {f"ln_vision.{name}": tensor for name, tensor in self.ln_vision.state_dict().items()}
        return state | qformer_to_published(self.bert.state_dict())


def build_qformer(
    vision_width: int,
    num_queries: int,
    options: Mapping[str, Any],
    weights: str | None,
    dtype: torch.dtype | None,
    device: Any,
) -> QFormer:
    """The Q-Former, frozen and in eval mode; `ln_vision` stays in float32, as it was trained.

    Args:
        vision_width: width of the image features.
        num_queries: number of learned queries (Q).
        options: further fields of `Blip2QFormerConfig`.
        weights: BLIP-2's file; None: random weights, the same at each call.
        dtype: number format of the weights; None: that of the file.
        device: device of the weights.

    Raises:
        ConfigError: As for `QFormer`.
        CheckpointError: The file does not fit.
    """
    if weights is None:
        with seeded_weights():
            qformer = QFormer(vision_width, num_queries, options).to(device=device, dtype=dtype)
        qformer.ln_vision.float()
    else:
        with init_empty_weights(include_buffers=False):
            qformer = QFormer(vision_width, num_queries, options)
        state = _qformer_state(model_state(read_checkpoint(weights)), weights)
        load_strictly(qformer, state, weights, dtype=dtype, device=device, in_float32=("ln_vision.",))
        qformer.to(device)  # the buffers
    return qformer.requires_grad_(False).eval()


def query_width(options: Mapping[str, Any]) -> int:
    """Width of the Q-Former with these fields of `Blip2QFormerConfig`; errors as for `QFormer`."""
    return int(_qformer_config(options).hidden_size)


def _qformer_config(options: Mapping[str, Any], **own: Any) -> Blip2QFormerConfig:
    unknown = sorted(set(options) - set(Blip2QFormerConfig().to_dict()))
    if unknown:
        raise ConfigError(f"model.q_former_args: transformers' Blip2QFormerConfig has no field '{unknown[0]}'")
    try:
        return Blip2QFormerConfig(**own, **options)
    except Exception as error:
        raise _unusable(error) from error


def _unusable(error: Exception) -> ConfigError:
    return ConfigError(f"model.q_former_args: no Q-Former can be built with these values: {one_line(error)}")


def _qformer_state(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The tensors that the Q-Former uses, under its own names."""
    own = ("query_tokens", "ln_vision.weight", "ln_vision.bias")
    used = {name for name in state if name.startswith(QFORMER_PREFIX) or name in own}
    unexpected = unexpected_keys(state, used, QFORMER_UNUSED)
    if unexpected:
        raise CheckpointError(f"{source}: unexpected tensors for the Q-Former: {first_few(sorted(unexpected), 3)}")
    ours = {f"bert.{name}": tensor for name, tensor in qformer_from_published(state).items()}
    return ours | {name: state[name] for name in own if name in state}


def qformer_from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BLIP-2's `Qformer.bert.*` tensors under the names of transformers' `Blip2QFormerModel`."""
    renamed = {}
    for name, tensor in state.items():
        if name.startswith(QFORMER_PREFIX) and not matches_any(name, QFORMER_UNUSED):
            ours = name.removeprefix(QFORMER_PREFIX)
            for pattern, replacement in _RENAMED:
                ours = re.sub(pattern, replacement, ours)
            renamed[ours] = tensor
    return renamed


def qformer_to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `qformer_from_published`."""
    renamed = {}
    for name, tensor in state.items():
        theirs = re.sub(r"^layernorm\.", "embeddings.LayerNorm.", name)
        theirs = re.sub(r"(cross)?attention\.attention\.", r"\1attention.self.", theirs)
        renamed[QFORMER_PREFIX + theirs] = tensor
    return renamed

"""Attention for sequences that lie one behind the other in one row, without padding and without a mask.

Everything else in a decoder layer treats tokens one by one, so only attention has to know where a sample ends. It is
told by a `Layout`, which transformers hands through to the attention function that is registered here. (Resetting
position ids instead would leave it to transformers to find the samples, which waits for the device at each step and
leaks between samples where a mask or a cache is passed as well.)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

PACKABLE = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Model types of transformers whose attention is causal, rotary and nothing else."""
SHORT = 512
"""Tokens up to which a CPU keeps a sample's scores, 1 MB a head."""
_NAME = "minigpt4_layout"


class Layout(ABC):
    """Where the samples lie in the tokens of one forward pass."""

    @abstractmethod
    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Causal attention within each sample.

        Args:
            module: The attention layer; `layer_idx` is its place.
            query: (B, heads, T, width of a head), rotated.
            key: The same with the key's heads.
            value: As key.
            scaling: Of the scores.

        Returns:
            (B, T, heads, width of a head).
        """


class Packed(Layout):
    """Samples one behind the other, (1, N, ...).

    Args:
        lengths: Tokens of each sample; their sum is N.
        places: Where each token stands in the padded batch, flattened, (N,).
    """

    def __init__(self, lengths: Sequence[int], places: Tensor) -> None:
        self.lengths = list(lengths)
        self.places = places

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        if query.device.type == "cpu":
            return self._one_by_one(module, query, key, value, scaling)
        return self._side_by_side(module, query, key, value, scaling)

    def _seen(self, module: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """All that samples (B, heads, T, width of a head) see: what stands in front of them, and they themselves."""
        return key, value

    def _one_by_one(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """No work on padding at all; on a GPU, where each call has its price, `_side_by_side` takes less time."""
        dtype = query.dtype
        # The CPU's attention is slower in bfloat16 than in float32, its backward more than twice.
        split = [tensor.float().split(self.lengths, dim=2) for tensor in (query, key, value)]
        outputs = [
            _causal_on_cpu(module, q, *self._seen(module, k, v), scaling) for q, k, v in zip(*split, strict=True)
        ]
        return torch.cat(outputs, dim=1).to(dtype)

    def _side_by_side(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """One call for all samples, padded on the right for attention alone."""
        rows, width = len(self.lengths), max(self.lengths)

        def padded(packed: Tensor) -> Tensor:
            tokens = packed[0].transpose(0, 1)
            empty = tokens.new_zeros(rows * width, *tokens.shape[1:])
            return empty.index_copy(0, self.places, tokens).unflatten(0, (rows, width)).transpose(1, 2)

        out = _causal(module, padded(query), *self._seen(module, padded(key), padded(value)), scaling)
        return out.flatten(0, 1).index_select(0, self.places).unsqueeze(0)


def _causal_on_cpu(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """One sample, its queries those of the last keys. A short one's scores are small enough to be kept: two batched
    products take half of the time of torch's fused attention, which multiplies in small blocks."""
    length, seen = query.shape[2], key.shape[2]
    if seen > SHORT:
        return _causal(module, query, key, value, scaling)
    groups = query.shape[1] // key.shape[1]
    keys, values = repeat_kv(key, groups)[0], repeat_kv(value, groups)[0]
    ahead = torch.full((length, seen), -torch.inf).triu(1 + seen - length)
    scores = torch.baddbmm(ahead.expand(len(keys), -1, -1), query[0], keys.mT, alpha=scaling)
    return (scores.softmax(dim=2) @ values).transpose(0, 1).unsqueeze(0)


def _causal(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    length, seen = query.shape[2], key.shape[2]
    mask = None  # by which torch takes its quickest way, but only where queries and keys are of the same tokens
    if seen > length:
        mask = torch.ones(length, seen, dtype=torch.bool, device=query.device).tril(seen - length)
    out: Tensor = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, is_causal=mask is None)[0]
    return out


@torch.compiler.disable  # lengths are plain numbers here: each batch's would be compiled anew
def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    layout: Layout,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls; what it computes is the layout's."""
    return layout.attend(module, query, key, value, scaling), None


AttentionInterface.register(_NAME, _attend)


def packable(llm: nn.Module) -> bool:
    """Whether the language model's attention is one that a `Layout` can stand for."""
    config: Any = llm.config
    slides = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    return config.model_type in PACKABLE and not slides


@contextmanager
def packed_attention(llm: nn.Module) -> Iterator[None]:
    """Inside, forward passes of `llm` take the keyword `layout`."""
    config: Any = llm.config
    usual = config._attn_implementation
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = usual

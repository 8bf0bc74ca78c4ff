"""Attention over sequences packed into one row, without padding and without a mask.

Everything else in a decoder layer treats each token separately, so only attention has to know where a sample ends. A
`Layout` tells it; transformers passes the layout on to the attention function registered here. (With position ids that
restart at each sample, transformers would have to find the samples itself: that waits for the device at each step, and
leaks between samples where a mask or a cache is passed as well.)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

PACKABLE = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Model types of transformers whose attention is causal, rotary and nothing else."""
MAX_UNFUSED_TOKENS = 512
"""Longest sample, in tokens, whose attention scores a CPU holds in memory: 1 MB a head."""
_NAME = "minigpt4_layout"
"""Name of the attention function in transformers' registry."""


def packable(llm: nn.Module) -> bool:
    """Whether a `Layout` can replace the language model's attention."""
    config: Any = llm.config
    slides = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    return config.model_type in PACKABLE and not slides


def packed_attention(llm: nn.Module) -> AbstractContextManager[None]:
    """Within this context, forward passes of `llm` take the keyword `layout`."""
    return _attention(llm, _NAME)


def attention_in_recomputation(llm: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a forward pass of `llm` and of its recomputation, which gets the attention of the former.

    Returns:
        What `context_fn` of torch's `checkpoint` has to return. Called in the forward pass.
    """
    return nullcontext(), _attention(llm, llm.config._attn_implementation)  # type: ignore[union-attr, arg-type]


@contextmanager
def _attention(llm: nn.Module, name: str) -> Iterator[None]:
    config: Any = llm.config
    original = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = original


@contextmanager
def attention_of_gpus(wanted: bool) -> Iterator[None]:
    """Within this context, if `wanted`, tensors on the CPU are attended to as on a GPU, to plan for one."""
    original = Packed.attend
    if wanted:
        Packed.attend = Packed._attend_padded  # type: ignore[method-assign]
    try:
        yield
    finally:
        Packed.attend = original  # type: ignore[method-assign]


class Layout(ABC):
    """Which tokens of a forward pass belong to which sample."""

    @abstractmethod
    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Causal attention within each sample.

        Args:
            module: attention layer; `layer_idx` is its index.
            query: rotated queries, (B, heads, T, head width).
            key: rotated keys, (B, key heads, T, head width).
            value: values, shaped as the keys.
            scaling: factor of the scores.

        Returns:
            (B, T, heads, head width).
        """


class Packed(Layout):
    """B samples one after another in a single row of N tokens.

    Args:
        lengths: tokens of each sample; their sum is N.
        padded_positions: index of each token in the flattened (B * longest) batch with padding, (N,).
    """

    def __init__(self, lengths: Sequence[int], padded_positions: Tensor) -> None:
        self.lengths = list(lengths)
        self.padded_positions = padded_positions

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        if query.device.type == "cpu":
            return self._attend_per_sample(module, query, key, value, scaling)
        return self._attend_padded(module, query, key, value, scaling)

    def _attend_per_sample(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """One call for each sample: nothing is computed for padding.

        On a GPU, where every call has a cost of its own, `_attend_padded` takes less time.
        """
        dtype = query.dtype
        # The CPU's attention is slower in bfloat16 than in float32, its backward more than twice.
        split = [tensor.float().split(self.lengths, dim=2) for tensor in (query, key, value)]
        outputs = [
            _causal_on_cpu(module, q, *self._with_prefix(module, k, v), scaling) for q, k, v in zip(*split, strict=True)
        ]
        return torch.cat(outputs, dim=1).to(dtype)

    def _attend_padded(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """One call for all samples, right-padded for attention only."""
        rows, width = len(self.lengths), max(self.lengths)

        def padded(packed: Tensor) -> Tensor:
            tokens = packed[0].transpose(0, 1)
            empty = tokens.new_zeros(rows * width, *tokens.shape[1:])
            return empty.index_copy(0, self.padded_positions, tokens).unflatten(0, (rows, width)).transpose(1, 2)

        out = _causal(module, padded(query), *self._with_prefix(module, padded(key), padded(value)), scaling)
        return out.flatten(0, 1).index_select(0, self.padded_positions).unsqueeze(0)

    def _with_prefix(self, module: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values that the samples attend to: a prefix, where a subclass has one, and their own."""
        return key, value


def _causal_on_cpu(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Attention of one sample, whose queries belong to the last keys.

    The scores of a short sample fit in memory: two batched products take half the time of torch's fused attention,
    which multiplies in small blocks.
    """
    length, visible = query.shape[2], key.shape[2]
    if visible > MAX_UNFUSED_TOKENS:
        return _causal(module, query, key, value, scaling)
    groups = query.shape[1] // key.shape[1]
    keys, values = repeat_kv(key, groups)[0], repeat_kv(value, groups)[0]
    future = torch.full((length, visible), -torch.inf).triu(1 + visible - length)
    scores = torch.baddbmm(future.expand(len(keys), -1, -1), query[0], keys.mT, alpha=scaling)
    return (scores.softmax(dim=2) @ values).transpose(0, 1).unsqueeze(0)


def _causal(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """torch's fused attention, with queries that belong to the last keys."""
    length, visible = query.shape[2], key.shape[2]
    mask = None  # torch's fastest kernel takes no mask, but needs as many queries as keys
    if visible > length:
        mask = torch.ones(length, visible, dtype=torch.bool, device=query.device).tril(visible - length)
    out: Tensor = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, is_causal=mask is None)[0]
    return out


@torch.compiler.disable  # lengths are plain numbers here: every batch would be compiled again
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
    """The attention function that transformers calls: the layout computes it."""
    return layout.attend(module, query, key, value, scaling), None


AttentionInterface.register(_NAME, _attend)

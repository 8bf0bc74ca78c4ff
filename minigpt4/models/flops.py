"""Tokens and floating-point operations of a training step, computed on the host."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from minigpt4.common.types import CACHED_NDIM, Batch
from minigpt4.models.attention import packable

HALF_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100": 989e12,
    "H800": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 150e12,
    "A30": 165e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 6000 Ada": 364e12,
    "RTX A6000": 155e12,
    "RTX 5090": 209e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""GPUs by a part of their name -> FLOP/s of dense matrix products of 16-bit numbers with sums in float32, from NVIDIA's
datasheets."""
PARTIAL_GPUS = ("MIG", "Laptop", "Max-Q")
"""In the name of a GPU that reaches less than the others of its name."""


def datasheet_flops(name: str, dtype: torch.dtype) -> float | None:
    """FLOP/s of a GPU's matrix products by its datasheet; None: it is not in the table, or not for this format.

    Args:
        name: the GPU's name, as torch gives it.
        dtype: number format of the factors.
    """
    if dtype.itemsize != 2 or any(part in name for part in PARTIAL_GPUS):
        return None
    known = [gpu for gpu in HALF_FLOPS if re.search(rf"\b{gpu}\b", name)]
    return HALF_FLOPS[max(known, key=len)] if known else None


@dataclass(frozen=True, slots=True)
class Work:
    """The amount of training that was done.

    Attributes:
        samples: samples trained on.
        tokens: tokens of these samples, with those of images, without padding.
        padded_tokens: tokens that went through the language model, with padding.
        flops: floating-point operations of the matrix products, including attention's.
    """

    samples: float = 0.0
    tokens: float = 0.0
    padded_tokens: float = 0.0
    flops: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Work)))


class WorkMeter:
    """Counts the work of training steps with a frozen language model behind a trainable projection.

    A frozen weight costs 4 operations a token: 2 forward and 2 for the gradient with respect to its input. The 2 for
    its own gradient, which the usual estimate of 6N includes, are computed for adapters only. A weight of the encoders
    costs 2, because no gradient flows back through them.

    Args:
        llm: the language model.
        image_flops: operations of the encoders for one image, from `forward_flops`; 0: features come from a cache.
    """

    def __init__(self, llm: nn.Module, image_flops: float) -> None:
        config: Any = llm.config
        head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._attention = config.num_hidden_layers * config.num_attention_heads * head_width
        decoder: Any = llm.get_decoder()  # type: ignore[operator]
        self._weights = sum(_weights(module) for module in decoder.modules())
        self._adapters = sum(weight.numel() for name, weight in decoder.named_parameters() if ".lora_" in name)
        self._head = _weights(llm.get_output_embeddings())  # type: ignore[operator]
        self._packs = packable(llm)
        self._image_flops = image_flops

    def of(self, batch: Batch) -> Work:
        """The work of a training step on a batch."""
        rows, width = batch.input_ids.shape
        lengths = batch.lengths if self._packs else [width] * rows
        logits = batch.num_targets if self._packs else rows * len(batch.target_columns)
        tokens = sum(lengths)
        # Scores and their product with the values are 2 x 2 x length^2 x width; causal attention needs half of that.
        attention = 2 * self._attention * sum(length * length for length in lengths)
        forward = 2 * self._weights * tokens + 2 * self._head * logits + attention
        backward = forward + 2 * self._adapters * tokens
        images = 0 if batch.images is None or batch.images.ndim == CACHED_NDIM else len(batch.images)
        return Work(rows, sum(batch.lengths), tokens, forward + backward + images * self._image_flops)

    def of_all(self, batches: Iterable[Batch]) -> Work:
        """The work of all micro-batches of a step."""
        return sum(map(self.of, batches), Work())


def forward_flops(module: Callable[..., Tensor], *inputs: Tensor) -> float:
    """Floating-point operations of the matrix products in one call, counted while it runs."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return float(counter.get_total_flops())


def _weights(module: Any) -> int:
    """Weights that every token is multiplied by; a quantised layer counts with its unpacked size."""
    if isinstance(module, nn.Embedding) or hasattr(module, "base_layer"):  # peft's layers are made of others
        return 0
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return int(module.in_features * module.out_features)
    weight = getattr(module, "weight", None)
    return weight.numel() if isinstance(weight, Tensor) and weight.ndim == 2 else 0

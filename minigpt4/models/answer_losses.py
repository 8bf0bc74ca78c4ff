"""Negative log-likelihood of the answers under a causal language model: without padding where its kind allows that."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt4.common.types import IGNORED_LABEL, Batch
from minigpt4.models.packing import Packed, attention_by_layout, packable


def answer_losses(llm: nn.Module, embeds: Tensor, batch: Batch) -> Tensor:
    """Sum over the target tokens of each sample, float32 (B,).

    Args:
        llm: The language model.
        embeds: Embeddings of the batch, images in their places, (B, T, D).
        batch: On the device.
    """
    return packed_losses(llm, embeds, batch) if packable(llm) else padded_losses(llm, embeds, batch)


def packed_losses(llm: nn.Module, embeds: Tensor, batch: Batch) -> Tensor:
    """Only what is no padding goes through the model, and only learnt positions through its head."""
    rows, width = batch.input_ids.shape
    places, targets = batch.token_positions, batch.target_positions
    with attention_by_layout(llm):
        logits = _logits(
            llm,
            inputs_embeds=embeds.flatten(0, 1).index_select(0, places).unsqueeze(0),
            position_ids=(places % width).unsqueeze(0),
            logits_to_keep=targets,
            layout=Packed(batch.lengths, places),
        )
    learnt_at = places.index_select(0, targets)
    labels = batch.labels.flatten().index_select(0, learnt_at + 1)
    losses = F.cross_entropy(logits[0], labels, reduction="none")
    return losses.new_zeros(rows).index_add(0, learnt_at // width, losses)


def padded_losses(llm: nn.Module, embeds: Tensor, batch: Batch) -> Tensor:
    """For any language model. The padding is on the right and no mask is passed: under causal attention nothing real
    sees the padding, and attention takes its fast path. Logits are computed where some row learns the next token."""
    columns = batch.target_columns
    logits = _logits(llm, inputs_embeds=embeds, logits_to_keep=columns)
    labels = batch.labels[:, columns + 1]
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="none")
    return losses.view_as(labels).sum(dim=1)


def _logits(llm: nn.Module, **inputs: Any) -> Tensor:
    logits: Tensor = llm(use_cache=False, **inputs).logits
    return logits.to(torch.float32)

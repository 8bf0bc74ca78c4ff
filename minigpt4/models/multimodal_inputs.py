"""Splicing image embeddings into token embeddings, and padding prompts: pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def splice_images(token_embeds: Tensor, image_embeds: Tensor | None, positions: Tensor) -> Tensor:
    """Put image embeddings at their places among token embeddings.

    Args:
        token_embeds: (B, T, D); what stands at image positions is replaced.
        image_embeds: (N, Q, D), in the order of the places; None: there are no images.
        positions: Places in the flattened (B*T) sequence, (N*Q,).

    Returns:
        (B, T, D).

    Raises:
        ValueError: Places and embeddings differ in number.
    """
    num_embeds = 0 if image_embeds is None else image_embeds.shape[0] * image_embeds.shape[1]
    if positions.numel() != num_embeds:
        raise ValueError(f"{positions.numel()} image positions in the prompts, but {num_embeds} image embeddings")
    if image_embeds is None:
        return token_embeds
    flat = token_embeds.flatten(0, 1)
    embeds = image_embeds.flatten(0, 1).to(flat.dtype)
    return flat.index_copy(0, positions, embeds).view_as(token_embeds)


def left_padded(prompts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Embeddings of B prompts, each (T, D) -> (embeddings (B, T, D) padded on the left, mask (B, T), 0 on padding)."""
    embeds = pad_sequence(list(prompts), batch_first=True, padding_side="left")
    ones = [prompt.new_ones(len(prompt), dtype=torch.long) for prompt in prompts]
    return embeds, pad_sequence(ones, batch_first=True, padding_side="left")

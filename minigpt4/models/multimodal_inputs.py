"""Splicing image embeddings into token embeddings, and padding prompts: pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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


def left_padded(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Prompts of token ids -> (input_ids, attention_mask), both (B, T), padded on the left with 0.

    The mask comes from lengths, never from ids, so that no token can be mistaken for padding.
    """
    width = max(len(prompt) for prompt in prompts)
    input_ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask[row, width - len(prompt) :] = 1
    return input_ids, mask

"""Samples -> one right-padded batch, with all places in it that the model will ask for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minigpt4.common.types import CACHED_NDIM, IGNORED_LABEL, IMAGE_POSITION, Batch, Sample
from minigpt4.processors.normalise import normalise
from minigpt4.processors.stacking import stack_pictures


def collate(samples: Sequence[Sample]) -> Batch:
    """Put B samples together: ids padded with 0 and labels with IGNORED_LABEL, both (B, T).

    Places are found here, in a loader's worker: on a device each search would stall the training step.
    """
    lengths = [len(sample.encoded.input_ids) for sample in samples]
    input_ids = torch.zeros(len(samples), max(lengths), dtype=torch.long)
    labels = torch.full_like(input_ids, IGNORED_LABEL)
    for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
        input_ids[row, :length] = torch.tensor(sample.encoded.input_ids)
        labels[row, :length] = torch.tensor(sample.encoded.labels)
    images = [image for sample in samples for image in sample.images]
    is_token = torch.arange(input_ids.shape[1]) < torch.tensor(lengths)[:, None]
    learns_next = torch.zeros_like(is_token)
    learns_next[:, :-1] = labels[:, 1:] != IGNORED_LABEL
    return Batch(
        image_ids=[sample.image_id for sample in samples],
        images=_stacked(images) if images else None,
        input_ids=input_ids,
        labels=labels,
        lengths=lengths,
        num_targets=sum(sample.encoded.num_targets for sample in samples),
        image_positions=(input_ids.flatten() == IMAGE_POSITION).nonzero().squeeze(1),
        token_positions=is_token.flatten().nonzero().squeeze(1),
        target_positions=learns_next[is_token].nonzero().squeeze(1),
        target_columns=learns_next.any(dim=0).nonzero().squeeze(1),
        skipped=[message for sample in samples for message in sample.skipped],
    )


def _stacked(images: Sequence[Tensor]) -> Tensor:
    """Pictures, or cached features, of one batch; uint8 beside a user's own floats become floats here already."""
    if images[0].ndim + 1 == CACHED_NDIM:
        return torch.stack(list(images))
    mixed = len({image.dtype for image in images}) > 1
    return stack_pictures([normalise(image) for image in images] if mixed else images)

"""Samples -> one right-padded batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from minigpt4.common.types import IGNORED_LABEL, Batch, Sample


def collate(samples: Sequence[Sample]) -> Batch:
    """Put B samples together: ids padded with 0 and labels with IGNORED_LABEL, both (B, T)."""
    lengths = [len(sample.encoded.input_ids) for sample in samples]
    input_ids = torch.zeros(len(samples), max(lengths), dtype=torch.long)
    labels = torch.full_like(input_ids, IGNORED_LABEL)
    for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
        input_ids[row, :length] = torch.tensor(sample.encoded.input_ids)
        labels[row, :length] = torch.tensor(sample.encoded.labels)
    images = [image for sample in samples for image in sample.images]
    return Batch(
        image_ids=[sample.image_id for sample in samples],
        images=torch.stack(images) if images else None,
        input_ids=input_ids,
        labels=labels,
        lengths=torch.tensor(lengths),
        num_targets=sum(sample.encoded.num_targets for sample in samples),
        skipped=[message for sample in samples for message in sample.skipped],
    )

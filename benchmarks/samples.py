"""Random samples of the lengths that Flickr30k has: a prompt of 25 tokens around the image, 20 to 110 to learn."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor

from benchmarks.presets import IMAGE_SIZE, IMAGE_TOKEN_ID
from minigpt4.common.types import IGNORED_LABEL, IMAGE_POSITION, IMAGE_TOKEN, Batch, Sample
from minigpt4.conversation.template import PromptEncoder
from minigpt4.datasets.loaders import collate

BEFORE, AFTER = 7, 18
"""Prompt tokens in front of the image and behind it."""
ANSWER = (20, 110)


def _numbers(draw: Random, count: int) -> str:
    return " ".join(str(draw.randrange(10, 31_000)) for _ in range(count))


def make_samples(encoder: PromptEncoder, count: int) -> list[Sample]:
    """Random images, prompts and answers, the same on every machine."""
    draw = Random("samples")
    torch.manual_seed(0)
    samples = []
    for number in range(count):
        instruction = f"{_numbers(draw, BEFORE)} {IMAGE_TOKEN} {_numbers(draw, AFTER)}"
        encoded = encoder.encode_example(instruction, _numbers(draw, draw.randint(*ANSWER)))
        image = torch.randn(3, IMAGE_SIZE, IMAGE_SIZE)
        samples.append(Sample(image_id=str(number), images=(image,), encoded=encoded))
    return samples


def make_batches(samples: Sequence[Sample], batch_size: int) -> list[Batch]:
    """The samples in their order, `batch_size` to a batch."""
    return [collate(samples[start : start + batch_size]) for start in range(0, len(samples), batch_size)]


def for_peer(batch: Batch) -> dict[str, Tensor]:
    """The same batch as transformers' model takes it: padded ids with image tokens, a mask, labels."""
    assert batch.images is not None
    positions = torch.arange(batch.input_ids.shape[1])
    return {
        "pixel_values": batch.images,
        "input_ids": torch.where(batch.input_ids == IMAGE_POSITION, IMAGE_TOKEN_ID, batch.input_ids),
        "attention_mask": (positions < torch.tensor(batch.lengths)[:, None]).long(),
        "labels": torch.where(batch.labels == IGNORED_LABEL, -100, batch.labels),
    }

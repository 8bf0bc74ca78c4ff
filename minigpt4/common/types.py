"""Data that passes between packages: annotation records, encoded samples, batches."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from minigpt4.common.boxes import Box

IMAGE_TOKEN = "<ImageHere>"
"""Placeholder of an image in an instruction."""
IMAGE_POSITION = -1
"""Placeholder of one image embedding in `input_ids`; never a token of a vocabulary."""
CACHED_NDIM = 3
"""Dimensions of a batch of cached features; a batch of images has four."""
IGNORED_LABEL = -100
"""Label of a position that is not trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One annotated image; or several, or none, with a conversation.

    Attributes:
        image_id: name of the record in predictions and references: that of its image, or of its question where an image
            has several.
        images: paths of the images; a relative one starts at the dataset's image folder.
        answers: texts to train on or to compare with, complete; an answer that several people gave comes several times.
        question: the instruction; None: one of the dataset's prompts, chosen at random.
        earlier: question and answer of each turn before `question`, trained on as well.
        split: train, val or test; None: not annotated.
        source: file and row, for messages ("captions.jsonl, line 12").
        kind: kind of question, by which accuracy is told ("yes/no", "colour"); empty: not annotated.
        boxes: the annotated boxes, unrounded; none: not annotated.
        choices: answers to choose from, each of `answers` among them; none: any answer may be given.
    """

    image_id: str
    images: tuple[str, ...]
    answers: tuple[str, ...]
    question: str | None = None
    earlier: tuple[tuple[str, str], ...] = ()
    split: str | None = None
    source: str = ""
    kind: str = ""
    boxes: tuple[Box, ...] = ()
    choices: tuple[str, ...] = ()

    @property
    def image(self) -> str:
        """The first image, which stands for the record in reports; empty: there is none."""
        return self.images[0] if self.images else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A prompt, or a prompt with its answer, as token ids.

    Attributes:
        input_ids: T ids, BOS first; each image has as many IMAGE_POSITIONs as embeddings.
        labels: T ids, IGNORED_LABEL outside the answer and its end.
    """

    input_ids: list[int]
    labels: list[int]

    @property
    def num_targets(self) -> int:
        """Number of tokens in the loss."""
        return sum(label != IGNORED_LABEL for label in self.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One item of a dataset.

    Attributes:
        image_id: name of the image.
        images: preprocessed images in prompt order, each (3, S, S); or their cached features, each (Q, width).
        encoded: token ids and labels.
        instruction: the chosen instruction, for display.
        answer: the chosen answer, for display.
        skipped: why the images that this sample replaces could not be read, one message each.
    """

    image_id: str
    images: tuple[Tensor, ...]
    encoded: Encoded
    instruction: str = ""
    answer: str = ""
    skipped: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class Batch:
    """B samples, right-padded.

    Attributes:
        image_ids: name of each sample's image, B.
        images: images of all samples in order, (N, 3, S, S), or their cached features, (N, Q, width); None: there are
            none.
        input_ids: token ids with IMAGE_POSITION at image embeddings, 0 on padding, (B, T).
        labels: ids of the target tokens, IGNORED_LABEL elsewhere, (B, T).
        lengths: tokens of each sample without padding, B plain numbers, so that no device is asked for them.
        num_targets: number of target tokens in the batch, a plain number.
        image_positions: positions of the image embeddings in the flattened ids, (N*Q,).
        token_positions: positions of all tokens without padding in the flattened ids, (sum of lengths,).
        target_positions: indices into `token_positions` of tokens whose next token is a target, (num_targets,).
        target_columns: columns whose next token is a target in some row, (P,).
        skipped: one message for each unreadable image that was replaced, to be counted and logged.
    """

    image_ids: list[str]
    images: Tensor | None
    input_ids: Tensor
    labels: Tensor
    lengths: list[int]
    num_targets: int
    image_positions: Tensor
    token_positions: Tensor
    target_positions: Tensor
    target_columns: Tensor
    skipped: list[str] = field(default_factory=list)

    def _map_tensors(self, change: Any) -> Batch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: change(v) for name, v in values.items() if hasattr(v, "device")})

    def to(self, device: torch.device | str) -> Batch:
        """A copy on `device`; pinned tensors are copied asynchronously."""
        return self._map_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory (called by torch's DataLoader)."""
        return self._map_tensors(lambda tensor: tensor.pin_memory())

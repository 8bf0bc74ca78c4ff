"""What passes between packages: annotation records, encoded samples, batches, predictions."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

IMAGE_TOKEN = "<ImageHere>"
"""Stands for a picture in an instruction."""
IMAGE_POSITION = -1
"""Stands for one image embedding in `input_ids`; never a token of a vocabulary."""
CACHED_NDIM = 3
"""Dimensions of a batch of cached features; a batch of pictures has four."""
IGNORED_LABEL = -100
"""Label of a position that is not learnt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One annotated picture.

    Attributes:
        image_id: Its name in predictions and references.
        image: Path of the picture; relative ones start at the dataset's image folder.
        answers: Texts to learn or to compare with, whole.
        question: The instruction; None: one of the dataset's prompts is drawn.
        split: train, val or test; None: the annotations do not say.
        source: File and row, for messages ("captions.jsonl, line 12").
    """

    image_id: str
    image: str
    answers: tuple[str, ...]
    question: str | None = None
    split: str | None = None
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A prompt, or a prompt with its answer, as token ids.

    Attributes:
        input_ids: T ids, BOS first; each image takes as many IMAGE_POSITIONs as it has embeddings.
        labels: T ids, IGNORED_LABEL outside the answer and its end.
    """

    input_ids: list[int]
    labels: list[int]

    @property
    def num_targets(self) -> int:
        """Tokens that the loss is taken over."""
        return sum(label != IGNORED_LABEL for label in self.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One item of a dataset.

    Attributes:
        image_id: Name of the picture.
        images: Preprocessed pictures in prompt order, each (3, S, S); or their cached features, each (Q, width).
        encoded: Token ids and labels.
        instruction: The instruction as drawn, for display.
        answer: The answer as drawn, for display.
        skipped: Why pictures drawn before this one could not be used; this sample stands in for them.
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
        image_ids: B names.
        images: Pictures of all samples in order, (N, 3, S, S), or their cached features, (N, Q, width); None where
            there are none.
        input_ids: Token ids with IMAGE_POSITION at image embeddings, 0 on padding, (B, T).
        labels: IGNORED_LABEL where nothing is learnt, (B, T).
        lengths: Tokens of each of the B samples without padding; plain numbers, like `num_targets`.
        num_targets: Labels of the batch that count; a plain number, so that no device is asked for it.
        image_positions: Places of the image embeddings in the flattened ids, (N*Q,).
        token_positions: Places of the tokens that are no padding in the flattened ids, (sum of lengths,).
        target_positions: Those of them, by number, whose next token is learnt, (num_targets,).
        target_columns: Positions whose next token is learnt in some row, (P,).
        skipped: One message for each picture that was replaced by another; to be counted and logged.
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
        """A copy on `device`; pinned tensors travel without blocking."""
        return self._map_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory (called by torch's DataLoader)."""
        return self._map_tensors(lambda tensor: tensor.pin_memory())

"""Evaluation by describing: pictures of a split -> one caption each."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from minigpt4.common.errors import DataError
from minigpt4.common.schema import EvaluationConfig
from minigpt4.common.types import Record
from minigpt4.conversation.template import check_placeholders, with_image_tag
from minigpt4.datasets.instruction import InstructionDataset
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.processors.image import stack_images

logger = logging.getLogger(__name__)
SHARING = 4
"""Batches of pictures whose answers are generated together: a token of many answers costs little more than of few."""


@dataclass(frozen=True, slots=True)
class EncodedPictures:
    """A group of pictures as the frozen encoders see them.

    Attributes:
        indices: Their records in the dataset.
        queries: (N, Q, width of the Q-Former), on the CPU.
    """

    indices: tuple[int, ...]
    queries: Tensor


class _Pictures(Dataset[tuple[int, Tensor | str]]):
    """Record index -> (index, picture), or the message that says why it cannot be read."""

    def __init__(self, dataset: InstructionDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        try:
            return index, self.dataset.open(index)
        except DataError as error:
            return index, str(error)


def select_pictures(records: Sequence[Record], cfg: EvaluationConfig) -> list[int]:
    """Indices of the records to describe: all, the first `limit`, or a share fixed by `seed` and the names.

    Raises:
        ConfigError: limit and fraction are both set, or out of range.
    """
    if cfg.limit is not None:
        return list(range(min(cfg.limit, len(records))))
    if cfg.fraction is None:
        return list(range(len(records)))

    def lot(index: int) -> str:
        return hashlib.sha256(f"{cfg.seed}-{records[index].image_id}".encode()).hexdigest()

    drawn = sorted(range(len(records)), key=lot)[: math.ceil(cfg.fraction * len(records))]
    return sorted(drawn)


class Captioning:
    """Describes this process's share of the pictures.

    Groups are formed over the whole selection and dealt out to the processes, so that a picture shares its group with
    the same others, whatever the number of processes, and gets the same caption to the last bit.

    Args:
        model: Its projection may be exchanged between calls of `describe`; the encoders run once.
        dataset: Of the split, with the processors for evaluation.
        selection: Indices of the records to describe.
        cfg: Prompt, batch size, generation.
        rank: Of this process.
        world_size: Processes.

    Raises:
        DataError: evaluation.prompt has no image placeholder.
    """

    def __init__(
        self,
        model: MiniGPT4,
        dataset: InstructionDataset,
        selection: Sequence[int],
        cfg: EvaluationConfig,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.model = model
        self.dataset = dataset
        self.selection = selection
        self.cfg = cfg
        self.prompt = cfg.prompt or dataset.prompts[0]
        check_placeholders(self.prompt, 1, "evaluation.prompt")
        size = SHARING * cfg.batch_size
        groups = [list(selection[start : start + size]) for start in range(0, len(selection), size)]
        self.groups = groups[rank::world_size]
        self.show_progress = None if rank == 0 else True
        self.skipped: list[str] = []
        self.skipped_everywhere: list[str] = []
        self._encoded: list[EncodedPictures] | None = None

    def describe(self, label: str) -> list[tuple[int, str]]:
        """(record index, caption) of this process's readable pictures."""
        captions: list[tuple[int, str]] = []
        for group in tqdm(self.encoded(), desc=f"captions of {label}", unit="group", disable=self.show_progress):
            prompts = [self._prompt_ids(index) for index in group.indices]
            answers = self.model.generate(prompts, self.cfg.generation, queries=group.queries)
            captions += zip(group.indices, (answer.text for answer in answers), strict=True)
        return captions

    def encoded(self) -> list[EncodedPictures]:
        """All pictures through the frozen encoders, computed on the first call."""
        if self._encoded is None:
            self._encoded = list(self._encode())
        return self._encoded

    def _prompt_ids(self, index: int) -> list[int]:
        record = self.dataset.records[index]
        instruction = self.prompt if record.question is None else with_image_tag(record.question)
        return self.model.encoder.prompt(instruction, source=record.source)

    def _encode(self) -> Iterator[EncodedPictures]:
        loader: DataLoader[list[tuple[int, Tensor | str]]] = DataLoader(
            _Pictures(self.dataset),  # type: ignore[arg-type]
            batch_sampler=self.groups,
            num_workers=self.cfg.num_workers,
            collate_fn=list,
        )
        for group in tqdm(loader, desc="pictures", unit="group", disable=self.show_progress):
            self.skipped += [item for _, item in group if isinstance(item, str)]
            readable = [(index, item) for index, item in group if isinstance(item, Tensor)]
            if readable:
                batches = stack_images([picture for _, picture in readable]).split(self.cfg.batch_size)
                queries = [self.model.encode_queries(pixels.to(self.model.device)).cpu() for pixels in batches]
                yield EncodedPictures(indices=tuple(index for index, _ in readable), queries=torch.cat(queries))
        if self.skipped:
            logger.warning("%d pictures cannot be read and are left out: %s", len(self.skipped), self.skipped[0])

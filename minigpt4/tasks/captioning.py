"""Evaluation by captioning: the images of a split -> one caption each."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from minigpt4.common.errors import DataError
from minigpt4.common.logging import Progress
from minigpt4.common.schema import EvaluationConfig
from minigpt4.common.types import Record
from minigpt4.conversation.template import QUESTION, PromptPool, check_placeholders, place_images
from minigpt4.datasets.instruction import InstructionDataset
from minigpt4.datasets.readers.rows import repeated_ids
from minigpt4.evaluation.predictions import Prediction
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.processors.image import stack_images

GROUP_BATCHES = 4
"""Batches of images whose captions are generated together: one decode step of many captions costs little more than one
of few."""

logger = logging.getLogger(__name__)


def select_images(records: Sequence[Record], limit: int | None, fraction: float | None, seed: int) -> list[int]:
    """Indices of the records to describe.

    Args:
        records: records of the split.
        limit: take the first ones, at most this many.
        fraction: take this random share, which depends only on `seed` and the image ids.
        seed: seed of the random share.
    """
    if limit is not None:
        return list(range(min(limit, len(records))))
    if fraction is None:
        return list(range(len(records)))

    def rank(index: int) -> str:
        return hashlib.sha256(f"{seed}-{records[index].image_id}".encode()).hexdigest()

    return sorted(sorted(range(len(records)), key=rank)[: math.ceil(fraction * len(records))])


def check_image_ids(records: Iterable[Record]) -> None:
    """Make sure that every record has an image id of its own, by which its prediction is kept.

    Raises:
        DataError: two records have the same; the message names both.
    """
    for problem in repeated_ids(records):
        raise DataError(str(problem))


@dataclass(frozen=True, slots=True)
class EncodedImages:
    """A group of images as the frozen encoders see them.

    Attributes:
        indices: indices of their records in the dataset.
        queries: output of `encode_queries` for the images of all of them in order, (N, Q, width), on the CPU; None:
            they have none.
    """

    indices: tuple[int, ...]
    queries: Tensor | None


class Captioning:
    """Describes this process's share of the images.

    Groups are formed over the complete selection and distributed over the processes. An image therefore shares its
    group with the same others whatever the number of processes, and gets the same caption to the last bit.

    Args:
        model: the model; its projection may change between calls of `describe`.
        dataset: dataset of the split, with the processors of evaluation.
        selection: indices of the records to describe.
        cfg: prompt, batch size and generation.
        rank: rank of this process.
        world_size: number of processes.

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
        self.cfg = cfg
        self.prompt = cfg.prompt or dataset.prompts[0]
        self.prompts = PromptPool([self.prompt, *dataset.prompts])
        if QUESTION not in self.prompt:
            check_placeholders(self.prompt, 1, "evaluation.prompt")
        size = GROUP_BATCHES * cfg.batch_size
        groups = [list(selection[start : start + size]) for start in range(0, len(selection), size)]
        self.groups = groups[rank::world_size]
        self.encoded: list[EncodedImages] = []

    def encode_images(self) -> dict[int, str]:
        """Run the images of this process through the frozen encoders, once for all checkpoints.

        Returns:
            Record index -> error message, of the images that cannot be read; they are left out.
        """
        loader: DataLoader[list[tuple[int, tuple[Tensor, ...] | str]]] = DataLoader(
            _Images(self.dataset),  # type: ignore[arg-type]
            batch_sampler=self.groups,
            num_workers=self.cfg.num_workers,
            collate_fn=list,
        )
        unreadable: dict[int, str] = {}
        with Progress("images through the frozen encoders", sum(map(len, self.groups)), "images") as progress:
            for group in loader:
                unreadable |= {index: item for index, item in group if isinstance(item, str)}
                readable = {index: item for index, item in group if not isinstance(item, str)}
                if readable:
                    self.encoded.append(EncodedImages(tuple(readable), self._queries(sum(readable.values(), ()))))
                progress.advance(len(group))
        if unreadable:
            first = next(iter(unreadable.values()))
            logger.warning("left out %d images that cannot be read; the first: %s", len(unreadable), first)
        return unreadable

    def _queries(self, images: Sequence[Tensor]) -> Tensor | None:
        if not images:
            return None
        batches = stack_images(images).split(self.cfg.batch_size)
        return torch.cat([self.model.encode_queries(batch.to(self.model.device)).cpu() for batch in batches])

    def describe(self, label: str) -> list[Prediction]:
        """Captions of the images of `encode_images`.

        Args:
            label: name of the checkpoint, for the progress.
        """
        predictions = []
        total = sum(len(group.indices) for group in self.encoded)
        # A line even for one that is quick: "(2 of 6)" is never the first to be seen.
        with Progress(f"captions of {label}", total, "images", shortest=0) as progress:
            for group in self.encoded:
                records = [self.dataset.records[index] for index in group.indices]
                prompts = [self._prompt_ids(record) for record in records]
                # Sampled captions depend on neither the number of processes nor the groups before.
                torch.manual_seed(Random(f"{self.cfg.seed}-{records[0].image_id}").getrandbits(32))
                answers = self.model.generate(prompts, self.cfg.generation, queries=group.queries)
                for record, answer in zip(records, answers, strict=True):
                    predictions.append(Prediction(record.image_id, answer.text, record.image, record.answers))
                progress.advance(len(records))
        return predictions

    def _prompt_ids(self, record: Record) -> list[int]:
        questions = self.prompts.questions(record, lambda prompts: prompts[0])
        *asked, instruction = place_images(questions, len(record.images), record.source)
        earlier = [(question, answer) for question, (_, answer) in zip(asked, record.earlier, strict=True)]
        return self.model.encoder.prompt(instruction, len(record.images), record.source, earlier)


class _Images(Dataset[tuple[int, tuple[Tensor, ...] | str]]):
    """Record index -> (index, images), or (index, error message) where it cannot be read."""

    def __init__(self, dataset: InstructionDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> tuple[int, tuple[Tensor, ...] | str]:
        try:
            return index, self.dataset.open(index)
        except DataError as error:
            return index, str(error)

"""Evaluation by captioning: the images of a split -> one caption each."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
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

Opened = list[tuple[int, tuple[Tensor, ...] | str]]
"""Record index and images of each record of a group, or the reason why they cannot be read."""

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

    Features of as many groups as fit `cfg.feature_memory` are kept at a time, while each checkpoint describes them.

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
        self.groups = self._groups(selection)[rank::world_size]
        kept = self._groups_kept()
        starts = range(0, max(1, len(self.groups)), kept)
        self._first, *self._later = [self.groups[start : start + kept] for start in starts]
        self.encoded: list[EncodedImages] = []

    def _groups(self, selection: Sequence[int]) -> list[list[int]]:
        size = GROUP_BATCHES * self.cfg.batch_size
        return [list(selection[start : start + size]) for start in range(0, len(selection), size)]

    def _groups_kept(self) -> int:
        """Groups whose features fit `cfg.feature_memory`, at least one."""
        vision = self.model.visual_encoder
        dtype = torch.float32 if vision is None else next(vision.parameters()).dtype
        per_image = self.model.encoder.num_image_tokens * self.model.query_width * dtype.itemsize
        images = [sum(len(self.dataset.records[index].images) for index in group) for group in self.groups]
        largest = max(images, default=0) * per_image
        return max(1, int(self.cfg.feature_memory * 2**30 // largest)) if largest else max(1, len(images))

    def encode_images(self) -> dict[int, str]:
        """Open the images of this process, and run as many as are kept at a time through the frozen encoders.

        Returns:
            Record index -> error message, of the images that cannot be read; they are left out.
        """
        unreadable = self._encode(self._first)
        for group in self._opened([group for groups in self._later for group in groups], "images opened"):
            unreadable |= {index: item for index, item in group if isinstance(item, str)}
        if unreadable:
            first = next(iter(unreadable.values()))
            logger.warning("left out %d images that cannot be read; the first: %s", len(unreadable), first)
        return unreadable

    def parts(self) -> Iterator[bool]:
        """Make each part of the images available to `describe`, at least one and one at a time, after `encode_images`.

        Yields:
            Whether it is the last part.
        """
        yield not self._later
        for number, groups in enumerate(self._later, 1):
            self.encoded.clear()
            self._encode(groups)
            yield number == len(self._later)

    def _encode(self, groups: Sequence[list[int]]) -> dict[int, str]:
        """Add the features of some groups to `encoded`; record index -> error message of the images left out."""
        unreadable: dict[int, str] = {}
        for group in self._opened(groups, "images through the frozen encoders"):
            unreadable |= {index: item for index, item in group if isinstance(item, str)}
            readable = {index: item for index, item in group if not isinstance(item, str)}
            if readable:
                self.encoded.append(EncodedImages(tuple(readable), self._queries(sum(readable.values(), ()))))
        return unreadable

    def _opened(self, groups: Sequence[list[int]], what: str) -> Iterator[Opened]:
        """(record index, its images or why they cannot be read) of each group; `what` names it for the progress."""
        if not groups:
            return
        loader: DataLoader[Opened] = DataLoader(
            _Images(self.dataset),  # type: ignore[arg-type]
            batch_sampler=groups,
            num_workers=self.cfg.num_workers,
            collate_fn=list,
        )
        with Progress(what, sum(map(len, groups)), "images") as progress:
            for group in loader:
                yield group
                progress.advance(len(group))

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
        instruction, earlier = self._question(record)
        return self.model.encoder.prompt(instruction, len(record.images), record.source, earlier)

    def _question(self, record: Record) -> tuple[str, list[tuple[str, str]]]:
        """A record's question with placeholders of its images, and its earlier turns."""
        questions = self.prompts.questions(record, lambda prompts: prompts[0])
        *asked, instruction = place_images(questions, len(record.images), record.source)
        return instruction, [(question, answer) for question, (_, answer) in zip(asked, record.earlier, strict=True)]


class _Images(Dataset[tuple[int, tuple[Tensor, ...] | str]]):
    """Record index -> (index, images), or (index, error message) where it cannot be read."""

    def __init__(self, dataset: InstructionDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> tuple[int, tuple[Tensor, ...] | str]:
        try:
            return index, self.dataset.open(index)
        except DataError as error:
            return index, str(error)

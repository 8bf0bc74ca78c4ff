"""Evaluation by questions: the questions about the images of a split -> an answer each, and one about another image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor

from minigpt4.common.logging import Progress
from minigpt4.common.schema import EvaluationConfig
from minigpt4.common.types import Record, Sample
from minigpt4.conversation.template import QUESTION
from minigpt4.datasets.instruction import InstructionDataset
from minigpt4.datasets.loaders import collate
from minigpt4.evaluation.predictions import Prediction
from minigpt4.evaluation.questions import SHUFFLED
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.tasks.captioning import GROUP_BATCHES, Captioning, EncodedImages

IMAGES_OF_A_GROUP = 64
"""Images whose questions are answered together, and among which images are shuffled: no setting changes the control."""
QUESTIONS_OF_A_GROUP = 256
"""Questions from which on a group is complete, so that the processes get about equally many."""


class Answering(Captioning):
    """Answers this process's share of the questions.

    A group is made of images with all questions about them, so each image is encoded once. Which images share a group
    is drawn from the complete selection. For the control, the same question is asked about the next image of the group
    that has as many images.

    Args:
        model: the model; what is trained of it may change between calls of `describe`.
        dataset: dataset of the split, with the processors of evaluation.
        selection: indices of the records with the questions.
        cfg: batch size, generation, and whether there is a control.
        rank: rank of this process.
        world_size: number of processes.
        references: the truth of a record, as it is saved with its prediction.
        choose: answer by the most likely of the record's choices; otherwise by generation.
    """

    def __init__(
        self,
        model: MiniGPT4,
        dataset: InstructionDataset,
        selection: Sequence[int],
        cfg: EvaluationConfig,
        rank: int = 0,
        world_size: int = 1,
        *,
        references: Callable[[Record], Sequence[str]],
        choose: bool = False,
    ) -> None:
        self._references = references
        self._choose = choose
        self._about: dict[int, list[int]] = {}
        """First record about some images -> all records about them."""
        super().__init__(model, dataset, selection, cfg, rank, world_size)
        if all(dataset.records[index].question for index in selection):
            self.prompt = next(iter(self.prompts.around), QUESTION)

    def _groups(self, selection: Sequence[int]) -> list[list[int]]:
        about: dict[tuple[str, ...], list[int]] = {}
        for index in selection:
            about.setdefault(self.dataset.records[index].images, []).append(index)
        self._about = {records[0]: records for records in about.values()}
        firsts = list(self._about)
        Random(f"{self.cfg.seed}-swap").shuffle(firsts)
        groups: list[list[int]] = [[]]
        for first in firsts:
            questions = sum(len(self._about[other]) for other in groups[-1])
            if len(groups[-1]) == IMAGES_OF_A_GROUP or (questions >= QUESTIONS_OF_A_GROUP and len(groups[-1]) > 1):
                groups.append([])
            groups[-1].append(first)
        if len(groups) > 1 and len(groups[-1]) == 1:  # which has no other image to be shuffled with
            groups[-2:] = [groups[-2] + groups[-1]]
        return groups

    def encode_images(self) -> dict[int, str]:
        """As `Captioning.encode_images`, for every record about an image."""
        found = super().encode_images()
        return {index: message for first, message in found.items() for index in self._about[first]}

    def describe(self, label: str) -> list[Prediction]:
        """Answers to the questions about the images of the present part.

        Args:
            label: name of the checkpoint, for the progress.
        """
        predictions = []
        total = sum(len(self._about[first]) for group in self.encoded for first in group.indices)
        with Progress(f"answers of {label}", total, "questions", shortest=0) as progress:
            for group in self.encoded:
                shown = self._queries_of(group)
                others = self._others(shown) if self.cfg.shuffled else {}
                for batch in self._batches(group.indices):
                    predictions += self._answer(batch, shown, others)
                    progress.advance(len(batch))
        return predictions

    def _queries_of(self, group: EncodedImages) -> dict[int, Tensor]:
        """First record about some images -> their queries, (images, Q, width)."""
        counts = [len(self.dataset.records[first].images) for first in group.indices]
        if group.queries is None:
            return {first: torch.empty(0) for first in group.indices}
        return dict(zip(group.indices, group.queries.split(counts), strict=True))

    @staticmethod
    def _others(shown: Mapping[int, Tensor]) -> dict[int, int]:
        """First record about some images -> that about the images shown instead; those without another are absent."""
        others: dict[int, int] = {}
        for count in {len(queries) for queries in shown.values()} - {0}:
            alike = [first for first, queries in shown.items() if len(queries) == count]
            if len(alike) > 1:
                others |= zip(alike, alike[1:] + alike[:1], strict=True)
        return others

    def _batches(self, firsts: Sequence[int]) -> Iterator[list[tuple[int, int]]]:
        """(record, first record about its images) of the questions that are answered together."""
        asked = [(index, first) for first in firsts for index in self._about[first]]
        size = GROUP_BATCHES * self.cfg.batch_size
        return (asked[start : start + size] for start in range(0, len(asked), size))

    def _answer(
        self, batch: Sequence[tuple[int, int]], shown: Mapping[int, Tensor], others: Mapping[int, int]
    ) -> list[Prediction]:
        """Predictions of one batch; those of records in `others` have the answer about the other image too."""
        swapped = [(index, others[first]) for index, first in batch if first in others]
        answers = self._texts(batch, shown)
        control = {index: text for (index, _), (text, _) in zip(swapped, self._texts(swapped, shown), strict=True)}
        predictions = []
        for (index, first), (text, more) in zip(batch, answers, strict=True):
            record = self.dataset.records[index]
            extra: dict[str, Any] = {"question": record.question or self.prompt, **more}
            if record.kind:
                extra["kind"] = record.kind
            if index in control:
                extra |= {SHUFFLED: control[index], "shuffled_image": self.dataset.records[others[first]].image}
            references = tuple(self._references(record))
            predictions.append(Prediction(record.image_id, text, record.image, references, extra))
        return predictions

    def _texts(self, batch: Sequence[tuple[int, int]], shown: Mapping[int, Tensor]) -> list[tuple[str, dict[str, Any]]]:
        """Answer and further entries of the prediction of each (record, first record about the images shown)."""
        if not batch:
            return []
        records = [self.dataset.records[index] for index, _ in batch]
        if self._choose:
            return [self._most_likely(record, shown[first]) for record, (_, first) in zip(records, batch, strict=True)]
        images = [shown[first] for _, first in batch if len(shown[first])]
        # Sampled answers depend on neither the number of processes nor the groups before.
        torch.manual_seed(Random(f"{self.cfg.seed}-{records[0].image_id}").getrandbits(32))
        prompts = [self._prompt_ids(record) for record in records]
        queries = torch.cat(images) if images else None
        return [(found.text, {}) for found in self.model.generate(prompts, self.cfg.generation, queries=queries)]

    @torch.no_grad()
    def _most_likely(self, record: Record, queries: Tensor) -> tuple[str, dict[str, Any]]:
        """The choice of a record that the model would give with the highest probability, its end included."""
        question, earlier = self._question(record)
        losses: list[float] = []
        samples = [
            Sample(
                image_id=record.image_id,
                images=tuple(queries),
                encoded=self.model.encoder.encode_example(
                    question, self.dataset.answer_text(choice), len(record.images), record.source, earlier
                ),
            )
            for choice in record.choices
        ]
        for start in range(0, len(samples), self.cfg.batch_size):
            batch = collate(samples[start : start + self.cfg.batch_size]).to(self.model.device)
            losses += self.model.answer_losses(batch).tolist()
        best = min(range(len(losses)), key=losses.__getitem__)
        return record.choices[best], {"choices": list(record.choices), "losses": [round(loss, 4) for loss in losses]}

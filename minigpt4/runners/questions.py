"""Questions about images, scored by what was asked: answers in words, one box, or the boxes of things."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from minigpt4.common.errors import DataError
from minigpt4.common.schema import EvaluationConfig, EvaluationTask, Scorer
from minigpt4.common.types import Record
from minigpt4.datasets.instruction import InstructionDataset
from minigpt4.evaluation.predictions import Prediction
from minigpt4.evaluation.questions import box_text, fitting_scorer, score_answers, score_by_kind
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.runners.evaluate import Scored
from minigpt4.tasks.answering import Answering

BOXES_HINT = "give 'boxes' in JSONL or CSV, or choose another reader or task"


class Questions:
    """Questions with a known answer; as `runners.evaluate.Asked`.

    Args:
        settings: the `evaluation` section.
        asks: what is asked; not captions.
        records: the questions.

    Raises:
        DataError: the annotations do not fit the task or the scorer; the message names the record.
    """

    def __init__(self, settings: EvaluationConfig, asks: EvaluationTask, records: Sequence[Record]) -> None:
        self.settings = settings
        self.task = asks.value
        self._in_words = asks is EvaluationTask.vqa
        if self._in_words:
            self._scorer = _scorer(settings.scorer, records)
        else:
            self._scorer = self.task
            _check_boxes(asks, records)
        self.metrics: tuple[str, ...] = (self._scorer,)

    def references(self, record: Record) -> Sequence[str]:
        """The answers, or the true boxes."""
        if self._in_words:
            return record.answers
        return [box_text(box) for box in record.boxes]

    def answering(
        self, model: MiniGPT4, dataset: InstructionDataset, selection: Sequence[int], rank: int, world_size: int
    ) -> Answering:
        """As `Asked.answering`."""
        choose = self._scorer == Scorer.choice.value
        return Answering(
            model, dataset, selection, self.settings, rank, world_size, references=self.references, choose=choose
        )

    def score(
        self, references: Mapping[str, Sequence[str]], predictions: Mapping[str, Sequence[Prediction]]
    ) -> dict[str, Scored]:
        """As `Asked.score`."""
        return {
            label: Scored(score_answers(self._scorer, listed), {}, score_by_kind(self._scorer, listed))
            for label, listed in predictions.items()
        }


def _scorer(chosen: Scorer, records: Sequence[Record]) -> str:
    """The scorer of answers in words.

    Raises:
        DataError: the annotations do not fit the one that was chosen.
    """
    if chosen is Scorer.auto:
        return fitting_scorer((record.answers, bool(record.choices)) for record in records)
    for record in records:
        if chosen is Scorer.choice and not record.choices:
            raise DataError(
                f"{record.source}: evaluation.scorer is choice, but the question has no 'choices'; give them, or set "
                "evaluation.scorer to soft or exact"
            )
        if chosen is Scorer.yes_no and fitting_scorer([(record.answers, False)]) != Scorer.yes_no.value:
            raise DataError(
                f"{record.source}: evaluation.scorer is yes_no, but the answer is {record.answers[0]!r}; set "
                "evaluation.scorer to soft or exact"
            )
    return chosen.value


def _check_boxes(task: EvaluationTask, records: Sequence[Record]) -> None:
    """Make sure that there is what answers are compared with.

    Raises:
        DataError: a referring question has not exactly one box, or no image has one.
    """
    for record in records:
        if task is EvaluationTask.refer and len(record.boxes) != 1:
            raise DataError(
                f"{record.source}: the task is refer, which needs one true box of each question, and this one "
                f"has {len(record.boxes) or 'none'}; {BOXES_HINT}"
            )
    if not any(record.boxes for record in records):
        raise DataError(f"the task is {task.value}, but no record has a true box; {BOXES_HINT}")

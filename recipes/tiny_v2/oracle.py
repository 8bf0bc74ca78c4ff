"""Judging answers of every task by kind of question."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence

from minigpt4.common.boxes import find_boxes, iou
from minigpt4.scenes.questions import TASKS, Question, questions_of
from minigpt4.scenes.truth import Scene, names_all
from recipes.tiny_v2.dialogues import instruction

Answerer = Callable[[Sequence[int], Sequence[str]], list[str]]
"""Indices of images and questions about them -> answers."""


def is_right(question: Question, answer: str, scene: Scene) -> bool:
    """Whether an answer is right: all objects named, all boxes found and no other, or the same words."""
    if question.task == "caption":
        return names_all(answer, scene)
    if question.task in ("refer", "detection"):
        found = find_boxes(answer)
        return len(found) == len(question.boxes) and all(
            any(iou(box.sides, other.sides) >= 0.5 and box.label == other.label for other in found)
            for box in question.boxes
        )
    return answer.strip().lower() == question.answers[0]


def task_scores(answer: Answerer, scenes: Sequence[Scene], seed: str) -> dict[str, float]:
    """Share of right answers by task and kind.

    Args:
        answer: answers questions about the images of the scenes.
        scenes: their content, objects with boxes.
        seed: names the questions.
    """
    asked = [
        (index, question)
        for index, scene in enumerate(scenes)
        for task in TASKS
        for question in questions_of(scene, task, random.Random(f"{seed}-{task}-{index}"))
    ]
    rng = random.Random(seed)
    answers = answer([index for index, _ in asked], [instruction(question, rng) for _, question in asked])
    rights: dict[str, list[bool]] = defaultdict(list)
    for (index, question), text in zip(asked, answers, strict=True):
        rights[f"{question.task} {question.kind}"].append(is_right(question, text, scenes[index]))
    return {kind: sum(found) / len(found) for kind, found in rights.items()}

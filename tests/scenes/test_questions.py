"""Questions of MiniGPT-v2's tasks about drawn scenes: their answers are true, and what they name is unambiguous."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from minigpt4.common.boxes import find_boxes
from minigpt4.scenes.drawing import with_boxes
from minigpt4.scenes.questions import TASKS, VQA_KINDS, Question, questions_of
from minigpt4.scenes.sampling import sample_split
from minigpt4.scenes.truth import Scene, SceneObject, named_objects

SCENES = [with_boxes(placed) for placed in sample_split("val", 150, "questions-test")]


def asked(task: str) -> list[tuple[Scene, Question]]:
    return [
        (scene, question)
        for number, scene in enumerate(SCENES)
        for question in questions_of(scene, task, random.Random(f"{task}-{number}"))
    ]


def matching(scene: Scene, phrase: str) -> list[SceneObject]:
    """The objects whose words are all those of a phrase such as "the large object" or "red circle"."""
    words = set(phrase.split()) - {"the", "object"}
    return [o for o in scene.objects if words <= {o.size, o.colour, o.shape}]


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_questions_and_equal_generators_ask_the_same(task: str) -> None:
    for scene in SCENES[:20]:
        questions = questions_of(scene, task, random.Random(7))
        assert questions == questions_of(scene, task, random.Random(7))
        assert questions and all(
            q.task == task and q.answers and bool(q.text) == (task != "caption") for q in questions
        )


def test_vqa_has_every_kind_and_its_answers_follow_from_the_scene() -> None:
    kinds: Counter[str] = Counter()
    for scene, question in asked("vqa"):
        kinds[question.kind] += 1
        (answer,) = question.answers
        text = question.text.rstrip("?")
        if question.kind == "count":
            assert int(answer) == len(scene.objects)
        elif question.kind == "background":
            assert answer == scene.background
        elif question.kind == "relation":
            for word in ("above", "below", "left of", "right of"):
                if f" {word} the " in text:
                    first, second = text.removeprefix("Is the ").split(f" {word} the ")
                    break
            (a,), (b,) = matching(scene, first), matching(scene, second)
            assert a.box is not None and b.box is not None
            down = (a.box.top + a.box.bottom) - (b.box.top + b.box.bottom)
            right = (a.box.left + a.box.right) - (b.box.left + b.box.right)
            true = {"above": down < 0, "below": down > 0, "left of": right < 0, "right of": right > 0}[word]
            assert answer == ("yes" if true else "no")
        elif question.kind == "presence":
            name = text.removeprefix("Is there ").removesuffix(" in the image").split(" ", 1)[1]
            assert answer == ("yes" if matching(scene, name) else "no")
        else:
            (o,) = matching(scene, text.split(" the ", 1)[1])
            assert answer == {"colour": o.colour, "shape": o.shape, "size": o.size, "place": o.position}[question.kind]
    assert set(kinds) == set(VQA_KINDS)
    assert kinds["count"] == len(SCENES)


def test_presence_is_as_often_right_as_wrong_and_wrong_names_are_often_half_right() -> None:
    found = [(scene, q) for scene, q in asked("vqa") if q.kind == "presence"]
    answers = Counter(q.answers[0] for _, q in found)
    assert 0.35 < answers["yes"] / len(found) < 0.65
    near = 0
    for scene, question in found:
        pairs = named_objects(question.text)
        if question.answers == ("no",) and pairs:
            near += any(o.colour == pairs[0][0] or o.shape == pairs[0][1] for o in scene.objects)
    assert near > answers["no"] / 4


def test_a_phrase_of_refer_fits_one_object_whose_box_is_the_answer() -> None:
    kinds = set()
    for scene, question in asked("refer"):
        kinds.add(question.kind)
        (o,) = matching(scene, question.text)
        assert question.boxes == (o.box,)
        (said,) = find_boxes(question.answers[0])
        assert o.box is not None and said.text == o.box.text == question.answers[0]
    assert kinds == {"name", "shape", "colour", "size"}


def test_identify_is_the_inverse_and_detection_names_every_box() -> None:
    for scene, question in asked("identify"):
        (said,) = find_boxes(question.text)
        (o,) = [o for o in scene.objects if o.box is not None and o.box.text == said.text]
        assert question.answers == (o.name,)
    for scene, question in asked("detection"):
        said = [(box.label, box.text) for box in find_boxes(question.answers[0])]
        if question.kind == "all":
            assert said == [(o.name, o.box.text) for o in scene.objects if o.box]
        else:
            shape = question.text
            assert said == [(shape, o.box.text) for o in scene.objects if o.shape == shape and o.box]
        assert [(box.label, box.text) for box in question.boxes] == said


def test_an_empty_scene_has_answers_too() -> None:
    scene = Scene("tan", ())
    kinds = {q.kind: q.answers for q in questions_of(scene, "vqa", random.Random(0))}
    assert kinds == {"count": ("0",), "background": ("tan",), "presence": ("no",)}
    assert [questions_of(scene, task, random.Random(0)) for task in ("refer", "identify", "detection")] == [[], [], []]

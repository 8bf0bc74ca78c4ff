"""Judging answers about scenes attribute by attribute.

The loss hides what a model does not know: guessing left or right costs little. So the recipe asks questions.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable

from minigpt4.common.types import IMAGE_TOKEN
from minigpt4.conversation.template import with_image_tag
from minigpt4.scenes.captions import FAMILIES
from minigpt4.scenes.truth import COLOURS, SHAPES, SIZES, Scene, names_all, names_largest
from recipes.tiny.questions import KINDS, ask

Answerer = Callable[[list[Scene], list[str]], list[str]]
"""Scenes and instructions (one image each) -> answers."""
_CANONICAL = {word: name for words in (COLOURS, SHAPES, SIZES) for name, all_ in words.items() for word in all_}
_WORD = re.compile("|".join(sorted(map(re.escape, _CANONICAL), key=len, reverse=True)))
_SIZE_WORDS = re.compile(rf"\b({'|'.join(SIZES)}) ")


def simplified(caption: str) -> str:
    """A caption with canonical words and one form for every phrase that has several; sizes stay."""
    text = _WORD.sub(lambda match: _CANONICAL[match[0]], caption.lower())
    text = re.sub(r"in the (\w+ \w+) corner", r"at the \1", text)
    text = re.sub(rf"({'|'.join(SHAPES)}) in ({'|'.join(COLOURS)})", r"\2 \1", text)
    return re.sub(r"\ban\b", "a", text)


def true_captions(scene: Scene) -> set[str]:
    """All sentences of the grammar about a scene, simplified, without their size words."""
    forms = (family(scene, random.Random(0), form) + "." for family in FAMILIES.values() for form in (0, 1))
    return {_SIZE_WORDS.sub("", simplified(text)) for text in forms}


def sizes_right(caption: str, scene: Scene) -> bool:
    """Whether every size word stands before an object of that size."""
    known = {(o.size, o.colour, o.shape) for o in scene.objects}
    pattern = rf"\b({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
    return all(found in known for found in re.findall(pattern, simplified(caption)))


def is_true(caption: str, scene: Scene) -> bool:
    """Whether the caption is true in all parts: objects, sizes, places, relations and background."""
    return _SIZE_WORDS.sub("", simplified(caption)) in true_captions(scene) and sizes_right(caption, scene)


def caption_scores(captions: Iterable[str], scenes: list[Scene]) -> dict[str, float]:
    """Shares of captions that name the largest object, name all, size them right, and are true altogether."""
    captions = list(captions)
    tests = {"largest": names_largest, "all objects": names_all, "sizes": sizes_right, "true": is_true}
    return {
        name: sum(test(caption, scene) for caption, scene in zip(captions, scenes, strict=True)) / len(scenes)
        for name, test in tests.items()
    }


def question_scores(answer: Answerer, scenes: list[Scene], seed: str) -> dict[str, float]:
    """Share of exactly right answers by kind of question."""
    asked = [
        (scene, *ask(scene, random.Random(f"{seed}-{number}"), KINDS[number % len(KINDS)]))
        for number, scene in enumerate(scenes)
    ]
    answers = answer([item[0] for item in asked], [with_image_tag(item[2]) for item in asked])
    rights: dict[str, list[bool]] = {}
    for (_, kind, _, wanted), got in zip(asked, answers, strict=True):
        rights.setdefault(kind, []).append(got == wanted)
    return {kind: sum(found) / len(found) for kind, found in rights.items()}


def oracle_scores(answer: Answerer, scenes: list[Scene], prompts: list[str], seed: str = "oracle") -> dict[str, float]:
    """All scores of one model: of descriptions, and of questions by kind."""
    assert all(IMAGE_TOKEN in prompt for prompt in prompts)
    captions = answer(scenes, [prompts[number % len(prompts)] for number in range(len(scenes))])
    described = [(caption, scene) for caption, scene in zip(captions, scenes, strict=True) if scene.objects]
    scores = caption_scores([caption for caption, _ in described], [scene for _, scene in described])
    empty = [names_all(caption, scene) for caption, scene in zip(captions, scenes, strict=True) if not scene.objects]
    if empty:
        scores["empty"] = sum(empty) / len(empty)
    return scores | {f"asked {kind}": value for kind, value in question_scores(answer, scenes, seed).items()}

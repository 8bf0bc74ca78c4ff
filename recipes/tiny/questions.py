"""Simple questions about a scene with their answers."""

from __future__ import annotations

import random
from collections import Counter

from minigpt4.scenes.captions import place_phrase, with_article
from minigpt4.scenes.truth import COLOURS, COLUMNS, ROWS, SHAPES, Scene, SceneObject

NUMBERS = ("no", "one", "two", "three")
KINDS = (
    "largest colour",
    "largest shape",
    "largest",
    "smallest",
    "count",
    "background",
    "where",
    "is there",
    "size",
    "colour of",
    "what is at",
)


def ask(scene: Scene, rng: random.Random, kind: str | None = None) -> tuple[str, str, str]:
    """Make up a question about a scene.

    Args:
        scene: what the image shows.
        rng: source of every choice.
        kind: one of `KINDS`; drawn where not given. An unanswerable kind becomes "count" or "background".

    Returns:
        The kind asked, the question and the answer.
    """
    kind = kind or rng.choice(KINDS)
    if not scene.objects and kind not in ("count", "background", "is there"):
        kind = rng.choice(("count", "background", "is there"))
    question, answer = _about_largest(scene, rng, kind) or _about_named(scene, rng, kind)
    return kind, question.replace("colour", rng.choice(("colour", "color"))), answer


def _about_largest(scene: Scene, rng: random.Random, kind: str) -> tuple[str, str] | None:
    noun = rng.choice(("object", "shape"))
    if kind == "count":
        number = NUMBERS[len(scene.objects)]
        verb = "is" if len(scene.objects) == 1 else "are"
        plural = "" if len(scene.objects) == 1 else "s"
        return f"How many {noun}s are there?", f"There {verb} {number} {noun}{plural}."
    if kind == "background":
        question = rng.choice(("What is the background like?", "What does the background look like?"))
        return question, f"The background is {scene.background}."
    if kind == "largest colour":
        return f"What colour is the largest {noun}?", f"The largest {noun} is {scene.objects[0].colour}."
    if kind == "largest shape":
        return "What shape is the largest object?", f"It is {with_article(scene.objects[0].shape)}."
    if kind in ("largest", "smallest"):
        o = scene.objects[0 if kind == "largest" else -1]
        return f"What is the {kind} {noun}?", f"It is {with_article(_name(o))}."
    return None


def _about_named(scene: Scene, rng: random.Random, kind: str) -> tuple[str, str]:
    if kind == "what is at":
        return _what_is_at(scene, rng)
    if kind == "colour of":
        shapes = Counter(o.shape for o in scene.objects)
        single = [o for o in scene.objects if shapes[o.shape] == 1]
        if single:
            o = rng.choice(single)
            return f"What colour is the {o.shape}?", f"The {o.shape} is {o.colour}."
    names = Counter(_name(o) for o in scene.objects)
    single = [o for o in scene.objects if names[_name(o)] == 1]
    absent = not single or rng.random() < (0.5 if kind == "is there" else 0.1)
    if absent:
        name = _absent_name(scene, rng)
        answer = f"There is no {name}."
        if kind == "is there":
            return f"Is there {with_article(name)}?", f"No, there is no {name}."
    else:
        o = rng.choice(single)
        name = _name(o)
        if kind == "is there":
            return f"Is there {with_article(name)}?", f"Yes, there is {with_article(name)} {place_phrase(o)}."
        answer = f"It is {o.size}." if kind == "size" else f"It is {place_phrase(o)}."
    return (f"How big is the {name}?" if kind == "size" else f"Where is the {name}?"), answer


def _what_is_at(scene: Scene, rng: random.Random) -> tuple[str, str]:
    by_cell = {(o.row, o.column): o for o in scene.objects}
    if rng.random() < 0.85:
        o = rng.choice(scene.objects)
    else:
        o = SceneObject("large", "red", "star", rng.choice(ROWS), rng.choice(COLUMNS))
    found = by_cell.get((o.row, o.column))
    answer = f"There is {with_article(f'{found.size} {_name(found)}')}." if found else "There is nothing."
    return f"What is {place_phrase(o)}?", answer


def _name(o: SceneObject) -> str:
    return f"{o.colour} {o.shape}"


def _absent_name(scene: Scene, rng: random.Random) -> str:
    present = {_name(o) for o in scene.objects}
    while True:
        name = f"{rng.choice(list(COLOURS))} {rng.choice(list(SHAPES))}"
        if name not in present:
            return name

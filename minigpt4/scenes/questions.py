"""Questions about a scene for MiniGPT-v2's tasks, whose prompts go around them: short answers, boxes in hundredths.

The answers are those of a scene whose objects have boxes (`drawing.with_boxes`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

from minigpt4.common.boxes import Box
from minigpt4.scenes.captions import captions_of, with_article
from minigpt4.scenes.truth import COLOURS, COLUMNS, ROWS, SHAPES, Scene, SceneObject

TASKS = ("caption", "vqa", "refer", "identify", "detection")
"""What a scene is asked about; the identifiers in front of the prompts."""
ALL_OBJECTS = "all objects"
"""What `[detection]` is given to find everything."""


@dataclass(frozen=True)
class Question:
    """A question about one image.

    Attributes:
        task: one of `TASKS`.
        kind: what has to be found out, for accuracies by kind.
        text: what the task's prompt goes around: a question, a phrase or a box; empty: nothing, as for a caption.
        answers: right answers.
        boxes: boxes of the objects that the answer is about, with their names where the task asks for names.
    """

    task: str
    kind: str
    text: str
    answers: tuple[str, ...]
    boxes: tuple[Box, ...] = ()


def questions_of(scene: Scene, task: str, rng: random.Random) -> list[Question]:
    """All that one task asks about a scene: a question of each kind that has an answer, or one for each object.

    Args:
        scene: content of the image, its objects with boxes.
        task: one of `TASKS`.
        rng: source of every choice.
    """
    return list(_WRITERS[task](scene, rng))


def _caption(scene: Scene, rng: random.Random) -> Iterator[Question]:
    yield Question("caption", "caption", "", tuple(captions_of(scene, rng)))


def _vqa(scene: Scene, rng: random.Random) -> Iterator[Question]:
    for kind, ask in VQA_KINDS.items():
        asked = ask(scene, rng)
        if asked is not None:
            text, answer = asked
            yield Question("vqa", kind, text.replace("colour", rng.choice(("colour", "color"))), (answer,))


def _refer(scene: Scene, rng: random.Random) -> Iterator[Question]:
    for o in scene.objects:
        phrase, kind = _phrase(o, scene, rng)
        if phrase:
            yield Question("refer", kind, phrase, (_box(o).text,), (_box(o),))


def _identify(scene: Scene, rng: random.Random) -> Iterator[Question]:
    for o in scene.objects:
        yield Question("identify", "object", _box(o).text, (o.name,), (_box(o),))


def _detection(scene: Scene, rng: random.Random) -> Iterator[Question]:
    if scene.objects:
        yield _found(ALL_OBJECTS, "all", [replace(_box(o), label=o.name) for o in scene.objects])
        shape = rng.choice(scene.objects).shape
        yield _found(shape, "shape", [replace(_box(o), label=shape) for o in scene.objects if o.shape == shape])


def _found(phrase: str, kind: str, boxes: Sequence[Box]) -> Question:
    answer = "<delim>".join(f"<p>{box.label}</p> {box.text}" for box in boxes)
    return Question("detection", kind, phrase, (answer,), tuple(boxes))


_WRITERS: dict[str, Callable[[Scene, random.Random], Iterator[Question]]] = {
    "caption": _caption,
    "vqa": _vqa,
    "refer": _refer,
    "identify": _identify,
    "detection": _detection,
}
Asked = tuple[str, str] | None
"""A question and its answer; None: a scene without one."""


def _count(scene: Scene, rng: random.Random) -> Asked:
    return "How many objects are there?", str(len(scene.objects))


def _background(scene: Scene, rng: random.Random) -> Asked:
    return "What is the background like?", scene.background


def _asks(question: str, known_by: str, wanted: str) -> Callable[[Scene, random.Random], Asked]:
    """Asks for one attribute of an object that another attribute tells from the rest."""

    def ask(scene: Scene, rng: random.Random) -> Asked:
        o = _choice(scene, rng, attrgetter(known_by))
        return (question.format(getattr(o, known_by)), getattr(o, wanted)) if o else None

    return ask


def _presence(scene: Scene, rng: random.Random) -> Asked:
    """Half of the answers are "yes"; half of the rest are about a colour and a shape of which one is there."""
    shape_only = rng.random() < 0.25
    if scene.objects and rng.random() < 0.5:
        o = rng.choice(scene.objects)
        return _is_there(o.shape if shape_only else o.name, "yes")
    present = {o.shape if shape_only else o.name for o in scene.objects}
    while True:
        colours, shapes = list(COLOURS), list(SHAPES)
        if scene.objects and rng.random() < 0.5:
            o = rng.choice(scene.objects)
            colours, shapes = ([o.colour], shapes) if rng.random() < 0.5 else (colours, [o.shape])
        shape = rng.choice(shapes)
        name = shape if shape_only else f"{rng.choice(colours)} {shape}"
        if name not in present:
            return _is_there(name, "no")


def _is_there(name: str, answer: str) -> Asked:
    return f"Is there {with_article(name)} in the image?", answer


def _relation(scene: Scene, rng: random.Random) -> Asked:
    """Only about rows or columns in which the two differ, so that no answer depends on a few pixels."""
    if len(scene.objects) < 2 or len({o.name for o in scene.objects}) < len(scene.objects):
        return None
    first, second = rng.sample(scene.objects, 2)
    down = ROWS.index(first.row) - ROWS.index(second.row)
    right = COLUMNS.index(first.column) - COLUMNS.index(second.column)
    words = rng.choice(
        [("above", -down), ("below", down)] * bool(down) + [("left of", -right), ("right of", right)] * bool(right)
    )
    return f"Is the {first.name} {words[0]} the {second.name}?", "yes" if words[1] > 0 else "no"


VQA_KINDS: dict[str, Callable[[Scene, random.Random], Asked]] = {
    "count": _count,
    "background": _background,
    "colour": _asks("What colour is the {}?", "shape", "colour"),
    "shape": _asks("What shape is the {} object?", "colour", "shape"),
    "size": _asks("How big is the {}?", "name", "size"),
    "place": _asks("Where is the {}?", "name", "position"),
    "presence": _presence,
    "relation": _relation,
}
"""Kinds of `[vqa]` questions."""


def _choice(scene: Scene, rng: random.Random, key: Callable[[SceneObject], str]) -> SceneObject | None:
    """A random object that no other one shares `key` with; None: there is none."""
    keys = [key(o) for o in scene.objects]
    single = [o for o in scene.objects if keys.count(key(o)) == 1]
    return rng.choice(single) if single else None


def _phrase(o: SceneObject, scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A phrase that fits no other object, and its kind; empty: there is none."""
    candidates = [
        ("name", f"the {o.name}", [x.name for x in scene.objects].count(o.name)),
        ("shape", f"the {o.shape}", [x.shape for x in scene.objects].count(o.shape)),
        ("colour", f"the {o.colour} object", [x.colour for x in scene.objects].count(o.colour)),
        ("size", f"the {o.size} object", 1),
    ]
    single = [(phrase, kind) for kind, phrase, count in candidates if count == 1]
    return rng.choice(single) if rng.random() < 0.5 else single[0]


def _box(o: SceneObject) -> Box:
    assert o.box is not None, "a scene of `with_boxes`"
    return o.box

"""Five differently worded captions of a scene.

Captions come in families that differ in their opening and in what they describe: what there is, the number of objects,
a relation, a place, the background. Which family a scene favours depends on its content (an aligned pair suits a
relation, an object in a corner its place), so that the captions of a model trained on these vary with the image in more
than the words filled in. Every caption of a scene with objects names each of them exactly once, with its colour.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from minigpt4.scenes.truth import COLOURS, COLUMNS, ROWS, SHAPES, SIZES, Scene, SceneObject

CAPTIONS_PER_SCENE = 5
_SYNONYM_SHARE = 0.15
"""Probability of a synonym instead of the name, where there is one."""
_RELATIONS = {
    (-1, 0): "above",
    (1, 0): "below",
    (0, -1): "to the left of",
    (0, 1): "to the right of",
    (-1, -1): "above and to the left of",
    (-1, 1): "above and to the right of",
    (1, -1): "below and to the left of",
    (1, 1): "below and to the right of",
}
"""(down, right) of an object from another one, as signs -> its position."""
CaptionWriter = Callable[[Scene, random.Random, int], str]


def captions_of(scene: Scene, rng: random.Random) -> list[str]:
    """Five different captions in random order: both forms of the family the scene favours, one of three others.

    Args:
        scene: content of the image; without objects, the captions say so.
        rng: source of every choice.
    """
    if not scene.objects:
        return rng.sample(_empty_captions(scene), CAPTIONS_PER_SCENE)
    favoured = favoured_family(scene)
    others = rng.sample([name for name in FAMILIES if name != favoured], CAPTIONS_PER_SCENE - 2)
    chosen = [(favoured, 0), (favoured, 1), *((name, rng.randrange(2)) for name in others)]
    rng.shuffle(chosen)
    return [_finish(FAMILIES[name](scene, rng, form)) for name, form in chosen]


def caption_in(scene: Scene, families: Sequence[str], rng: random.Random) -> str:
    """A caption of one of these families (keys of `FAMILIES`), for a scene with objects."""
    return _finish(FAMILIES[rng.choice(families)](scene, rng, rng.randrange(2)))


def favoured_family(scene: Scene) -> str:
    """The family (a key of `FAMILIES`) that suits a scene best, and of which it gets two captions."""
    first = scene.objects[0]
    if first.row != "middle" and first.column != "centre":
        return "place"
    if len(scene.objects) == 2 and 0 in _signs(first, scene.objects[1]):
        return "relation"
    if len(scene.objects) == 3:
        return "count"
    return "background" if scene.background in ("striped", "checkered", "dotted") else "there"


def place_phrase(o: SceneObject, rng: random.Random | None = None) -> str:
    """The place of an object, such as "at the top left", "in the centre" or "on the right"."""
    vertical, horizontal = o.row != "middle", o.column != "centre"
    if vertical and horizontal:
        if rng is not None and rng.random() < 0.5:
            return f"in the {o.row} {o.column} corner"
        return f"at the {o.row} {o.column}"
    if vertical:
        return f"at the {o.row}"
    return f"on the {o.column}" if horizontal else "in the centre"


def relation(first: SceneObject, second: SceneObject) -> str:
    """The position of the first object from the second, such as "above and to the left of"."""
    return _RELATIONS[_signs(first, second)]


def with_article(phrase: str) -> str:
    """The phrase with "a" or "an" before it."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def object_phrase(o: SceneObject, rng: random.Random) -> str:
    """An object with its article: "a large red circle", "a circle in red" or "a red circle"."""
    size, colour, shape = _word(SIZES[o.size], rng), _word(COLOURS[o.colour], rng), _word(SHAPES[o.shape], rng)
    draw = rng.random()
    if draw < 0.1:
        return with_article(f"{size} {shape} in {colour}")
    return with_article(f"{colour} {shape}" if draw < 0.25 else f"{size} {colour} {shape}")


def _signs(first: SceneObject, second: SceneObject) -> tuple[int, int]:
    """(down, right) of the first object from the second, each -1, 0 or 1."""
    down = ROWS.index(first.row) - ROWS.index(second.row)
    right = COLUMNS.index(first.column) - COLUMNS.index(second.column)
    return (down > 0) - (down < 0), (right > 0) - (right < 0)


def _word(words: tuple[str, ...], rng: random.Random) -> str:
    return rng.choice(words[1:]) if len(words) > 1 and rng.random() < _SYNONYM_SHARE else words[0]


def _finish(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _placed(o: SceneObject, rng: random.Random) -> str:
    return f"{object_phrase(o, rng)} {place_phrase(o, rng)}"


def _there(scene: Scene, rng: random.Random, form: int) -> str:
    """There is A at the top left and B at the bottom / There is A with B below it."""
    objects, ground = scene.objects, f"on a {scene.background} background"
    if form == 0:
        ending = f" {ground}" if len(objects) < 3 else ""
        return "there is " + _join([_placed(o, rng) for o in objects]) + ending
    text = f"there is {object_phrase(objects[0], rng)}"
    if len(objects) == 1:
        return f"{text} and nothing else {ground}"
    others = [f"{object_phrase(o, rng)} {relation(o, objects[0])} it" for o in objects[1:]]
    return f"{text} with {_join(others)}"


def _count(scene: Scene, rng: random.Random, form: int) -> str:
    """Two shapes on a striped background: B and A / Two objects are shown, B on the left and A at the top."""
    objects = scene.objects[::-1]
    number = ("only one", "two", "three")[len(objects) - 1]
    plural = "s" if len(objects) > 1 else ""
    if form == 0:
        listing = _join([object_phrase(o, rng) for o in objects])
        return f"{number} shape{plural} on a {scene.background} background: {listing}"
    listing = _join([_placed(o, rng) for o in objects])
    return f"{number} object{plural} {'are' if plural else 'is'} shown, {listing}"


def _relation(scene: Scene, rng: random.Random, form: int) -> str:
    """A sits above B / B can be seen below A."""
    objects, ground = scene.objects, f"a {scene.background} background"
    if len(objects) == 1:
        verb = ("sits", "can be seen")[form]
        return f"{object_phrase(objects[0], rng)} {verb} {place_phrase(objects[0], rng)} of {ground}"
    first, second = objects[:2] if form == 0 else objects[1::-1]
    verb = ("sits", "can be seen")[form]
    text = f"{object_phrase(first, rng)} {verb} {relation(first, second)} {object_phrase(second, rng)}"
    return f"{text}, with {_placed(objects[2], rng)}" if len(objects) == 3 else f"{text} on {ground}"


def _place(scene: Scene, rng: random.Random, form: int) -> str:
    """On the left is A, while at the top there is B / On the left you can see A, and B is at the top."""
    first, *rest = scene.objects
    opening = f"{place_phrase(first, rng)} {('is', 'you can see')[form]} {object_phrase(first, rng)}"
    if not rest:
        return f"{opening} on a {scene.background} background"
    if form == 0:
        others = [f"{place_phrase(o, rng)} there is {object_phrase(o, rng)}" for o in rest]
        return f"{opening}, while {_join(others)}"
    others = [f"{object_phrase(o, rng)} is {place_phrase(o, rng)}" for o in rest]
    return f"{opening}, and {_join(others)}"


def _background(scene: Scene, rng: random.Random, form: int) -> str:
    """The striped background holds A, bigger than B / The background is striped and A is at the top."""
    first, *rest = (object_phrase(o, rng) for o in scene.objects)
    place = place_phrase(scene.objects[0], rng)
    if form == 0:
        opening = f"the {scene.background} background holds {first} {place}"
        return f"{opening} which is bigger than {_join(rest)}" if rest else opening
    opening = f"the background is {scene.background} and {first} is {place}"
    return f"{opening} together with {_join(rest)}" if rest else opening


FAMILIES: dict[str, CaptionWriter] = {
    "there": _there,
    "count": _count,
    "relation": _relation,
    "place": _place,
    "background": _background,
}


def _empty_captions(scene: Scene) -> list[str]:
    ground = f"{scene.background} background"
    return [
        f"There is nothing on the {ground}.",
        f"The {ground} is empty.",
        f"An empty {ground}.",
        f"No shapes or objects on a {ground}.",
        f"Only a {ground} and nothing else.",
    ]

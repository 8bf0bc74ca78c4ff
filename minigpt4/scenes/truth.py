"""What a drawn scene shows, in which words, and whether a caption names it.

BLEU and CIDEr measure how similar two wordings are; for a drawn scene the truth is known, so a caption can also be
judged by the objects it names: a parser finds the (colour, shape) pairs in it, and two strict scores compare them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minigpt4.common.boxes import Box
from minigpt4.common.errors import DataError, MetricError, did_you_mean
from minigpt4.common.files import read_json

COLOURS: dict[str, tuple[str, ...]] = {
    "red": ("red", "scarlet"),
    "orange": ("orange",),
    "yellow": ("yellow",),
    "green": ("green",),
    "blue": ("blue",),
    "purple": ("purple", "violet"),
    "pink": ("pink",),
    "white": ("white",),
}
"""Name -> the words that captions may use for it, the name first."""
SHAPES: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "heart": ("heart",),
    "cross": ("cross",),
    "ring": ("ring", "hoop"),
    "moon": ("moon", "crescent"),
}
"""As `COLOURS`."""
SIZES: dict[str, tuple[str, ...]] = {
    "large": ("large", "big"),
    "medium": ("medium", "mid-sized"),
    "small": ("small", "tiny"),
}
"""As `COLOURS`, the largest first."""
BACKGROUNDS: tuple[str, ...] = ("grey", "black", "tan", "striped", "checkered", "dotted")
ROWS: tuple[str, ...] = ("top", "middle", "bottom")
COLUMNS: tuple[str, ...] = ("left", "centre", "right")
COUNT_WORDS: dict[str, int] = {"two": 2, "three": 3}
"""Number words that captions may use in front of an object."""

BOX_DECIMALS = 4
"""Digits of a box's sides in `scenes.json`."""


def _by_word(vocabulary: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    return {word: name for name, words in vocabulary.items() for word in words}


_COLOUR_OF = _by_word(COLOURS)
_SHAPE_OF = _by_word(SHAPES) | {
    ("crosses" if word == "cross" else "boxes" if word == "box" else word + "s"): name
    for word, name in _by_word(SHAPES).items()
}
_COLOUR_WORDS = "|".join(sorted(_COLOUR_OF, key=len, reverse=True))
_SHAPE_WORDS = "|".join(sorted(_SHAPE_OF, key=len, reverse=True))
_SIZE_WORDS = "|".join(word for words in SIZES.values() for word in words)
_OBJECT = re.compile(
    rf"(?:\b(?P<count>{'|'.join(COUNT_WORDS)})\s+)?(?:\b(?:{_SIZE_WORDS})\s+)?"
    rf"(?:\b(?P<colour>{_COLOUR_WORDS})\s+(?P<shape>{_SHAPE_WORDS})\b"
    rf"|\b(?P<shape_first>{_SHAPE_WORDS})\s+(?:painted\s+|coloured\s+|colored\s+|in\s+)"
    rf"(?P<colour_last>{_COLOUR_WORDS})\b)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class SceneObject:
    """One drawn object.

    Attributes:
        size: a key of `SIZES`.
        colour: a key of `COLOURS`.
        shape: a key of `SHAPES`.
        row: one of `ROWS`.
        column: one of `COLUMNS`.
        box: rectangle around what is drawn, without a label; None: not known. Not part of the content that is compared.
    """

    size: str
    colour: str
    shape: str
    row: str
    column: str
    box: Box | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """Colour and shape, such as "red circle"."""
        return f"{self.colour} {self.shape}"

    @property
    def position(self) -> str:
        """The cell as "row column", such as "top left" or "middle centre"."""
        return f"{self.row} {self.column}"


@dataclass(frozen=True)
class Scene:
    """The content of an image.

    Attributes:
        background: one of `BACKGROUNDS`.
        objects: its objects, the largest first (sizes are distinct).
    """

    background: str
    objects: tuple[SceneObject, ...]

    def to_json(self) -> dict[str, Any]:
        """The scene's entry in `scenes.json`."""
        return {"background": self.background, "objects": [_object_to_json(o) for o in self.objects]}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Scene:
        """The scene that `to_json` wrote.

        Raises:
            DataError: A key is missing, or a value is not in the vocabulary.
        """
        try:
            objects = tuple(_object_from_json(entry) for entry in record["objects"])
            background = str(record["background"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"not a scene record ({error!r}): {str(record)[:200]}") from error
        order = list(SIZES)
        return cls(background, tuple(sorted(objects, key=lambda o: order.index(o.size))))


def _object_to_json(o: SceneObject) -> dict[str, Any]:
    entry: dict[str, Any] = {"size": o.size, "colour": o.colour, "shape": o.shape, "position": o.position}
    if o.box is not None:
        entry["box"] = box_sides(o.box)
    return entry


def box_sides(box: Box) -> list[float]:
    """Left, top, right and bottom of a box as files have them."""
    return [round(side, BOX_DECIMALS) for side in (box.left, box.top, box.right, box.bottom)]


def _object_from_json(entry: Mapping[str, Any]) -> SceneObject:
    row, column = entry["position"].split()
    known = (
        ("size", entry["size"], SIZES),
        ("colour", entry["colour"], COLOURS),
        ("shape", entry["shape"], SHAPES),
        ("row", row, ROWS),
        ("column", column, COLUMNS),
    )
    for name, value, vocabulary in known:
        if value not in vocabulary:
            raise DataError(f"unknown {name} '{value}' in a scene: {did_you_mean(value, vocabulary)}")
    box = _box_from_json(entry["box"]) if "box" in entry else None
    return SceneObject(entry["size"], entry["colour"], entry["shape"], row, column, box)


def _box_from_json(sides: Any) -> Box:
    left, top, right, bottom = (float(side) for side in sides)
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise DataError(f"a box in a scene should be [left, top, right, bottom], shares of the image's sides: {sides}")
    return Box(left, top, right, bottom)


def load_scenes(path: str | Path) -> dict[str, Scene]:
    """Read `scenes.json`: the ground truth by image file name.

    Raises:
        DataError: The file is missing, is not JSON, or holds something that is not a scene.
    """
    records = read_json(path)
    if not isinstance(records, dict):
        raise DataError(f"{path} must map file names to scenes, found a {type(records).__name__}")
    return {name: Scene.from_json(record) for name, record in records.items()}


def named_objects(caption: str) -> list[tuple[str, str]]:
    """The (colour, shape) pairs that a caption names, in its order, by their names in the vocabulary.

    "a big scarlet disc and two pink boxes" gives a red circle and twice a pink square, "a ring in blue" a blue ring.
    A colour or a shape alone names nothing.
    """
    pairs: list[tuple[str, str]] = []
    for match in _OBJECT.finditer(caption):
        colour = match["colour"] or match["colour_last"]
        shape = match["shape"] or match["shape_first"]
        pair = (_COLOUR_OF[colour.lower()], _SHAPE_OF[shape.lower()])
        pairs.extend([pair] * COUNT_WORDS.get((match["count"] or "").lower(), 1))
    return pairs


def names_largest(caption: str, scene: Scene) -> bool:
    """Whether the caption names the largest object's colour and shape, and no more objects than there are.

    Because of the second condition a caption that lists everything is wrong. For an empty scene the caption is right
    if it names nothing.
    """
    pairs = named_objects(caption)
    if not scene.objects:
        return not pairs
    largest = scene.objects[0]
    return (largest.colour, largest.shape) in pairs and len(pairs) <= len(scene.objects)


def names_all(caption: str, scene: Scene) -> bool:
    """Whether the caption names exactly the scene's objects: equal multisets of (colour, shape)."""
    return Counter(named_objects(caption)) == Counter((o.colour, o.shape) for o in scene.objects)


def _match(predictions: Mapping[str, str], scenes: Mapping[str, Scene]) -> list[tuple[str, Scene]]:
    """Every prediction with its scene; a key is an image's file name, with or without its suffix."""
    if not predictions:
        raise MetricError("no predictions to score: the mapping from image to caption is empty")
    by_stem = {Path(name).stem: scene for name, scene in scenes.items()}
    pairs = []
    for key, caption in predictions.items():
        scene = scenes.get(str(key)) or by_stem.get(Path(str(key)).stem)
        if scene is None:
            hint = did_you_mean(str(key), list(scenes)[:1000])
            raise MetricError(f"no scene for prediction '{key}' among {len(scenes)}: {hint}")
        pairs.append((caption, scene))
    return pairs


def object_accuracy(predictions: Mapping[str, str], scenes: Mapping[str, Scene]) -> float:
    """Share of captions that name the right colour and shape of the largest object (see `names_largest`).

    Args:
        predictions: one caption by image file name, with or without its suffix.
        scenes: the ground truth by image file name; more scenes than predictions are fine.

    Raises:
        MetricError: There is no prediction, or no scene for one.
    """
    pairs = _match(predictions, scenes)
    return sum(names_largest(caption, scene) for caption, scene in pairs) / len(pairs)


def all_objects_accuracy(predictions: Mapping[str, str], scenes: Mapping[str, Scene]) -> float:
    """Share of captions that name every object and nothing else (see `names_all`); as `object_accuracy`."""
    pairs = _match(predictions, scenes)
    return sum(names_all(caption, scene) for caption, scene in pairs) / len(pairs)

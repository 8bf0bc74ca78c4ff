"""The vocabulary of drawn scenes, and the ground truth of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt4.common.errors import DataError, did_you_mean
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


@dataclass(frozen=True)
class SceneObject:
    """One drawn object.

    Attributes:
        size: a key of `SIZES`.
        colour: a key of `COLOURS`.
        shape: a key of `SHAPES`.
        row: one of `ROWS`.
        column: one of `COLUMNS`.
    """

    size: str
    colour: str
    shape: str
    row: str
    column: str

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
        return {
            "background": self.background,
            "objects": [
                {"size": o.size, "colour": o.colour, "shape": o.shape, "position": o.position} for o in self.objects
            ],
        }

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


def _object_from_json(entry: Mapping[str, str]) -> SceneObject:
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
    return SceneObject(entry["size"], entry["colour"], entry["shape"], row, column)


def load_scenes(path: str | Path) -> dict[str, Scene]:
    """Read `scenes.json`: the ground truth by image file name.

    Raises:
        DataError: The file is missing, is not JSON, or holds something that is not a scene.
    """
    records = read_json(path)
    if not isinstance(records, dict):
        raise DataError(f"{path} must map file names to scenes, found a {type(records).__name__}")
    return {name: Scene.from_json(record) for name, record in records.items()}

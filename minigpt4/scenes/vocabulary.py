"""The vocabulary of drawn scenes, and the record of what one shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt4.common.errors import MetricError, did_you_mean

# The first word of each entry is the canonical name; the others are synonyms that captions may use.
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
SIZES: dict[str, tuple[str, ...]] = {
    "large": ("large", "big"),
    "medium": ("medium", "mid-sized"),
    "small": ("small", "tiny"),
}
BACKGROUNDS: tuple[str, ...] = ("grey", "black", "tan", "striped", "checkered", "dotted")
ROWS: tuple[str, ...] = ("top", "middle", "bottom")
COLUMNS: tuple[str, ...] = ("left", "centre", "right")
COUNT_WORDS: dict[str, int] = {"two": 2, "three": 3}


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
    """A picture's content: its background and its objects, the largest first (sizes are distinct)."""

    background: str
    objects: tuple[SceneObject, ...]

    def to_json(self) -> dict[str, Any]:
        """The scene as it stands in `scenes.json`."""
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
            MetricError: a key is missing or a value is outside the vocabulary.
        """
        try:
            objects = tuple(_object_from_json(entry) for entry in record["objects"])
            background = str(record["background"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MetricError(f"not a scene record ({error!r}): {json.dumps(record)[:200]}") from error
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
            raise MetricError(f"unknown {name} '{value}' in a scene: {did_you_mean(value, vocabulary)}")
    return SceneObject(entry["size"], entry["colour"], entry["shape"], row, column)


def load_scenes(path: str | Path) -> dict[str, Scene]:
    """Read `scenes.json`: the ground truth by image file name.

    Raises:
        MetricError: the file is missing, is not JSON or holds something that is not a scene.
    """
    path = Path(path)
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MetricError(f"cannot read the scenes' ground truth {path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise MetricError(f"{path} is not JSON: {error}") from error
    if not isinstance(records, dict):
        raise MetricError(f"{path} must map file names to scenes, found a {type(records).__name__}")
    return {name: Scene.from_json(record) for name, record in records.items()}

"""Random scenes, and the partition that keeps train, val and test scenes apart."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

from minigpt4.common.errors import DataError
from minigpt4.scenes.truth import BACKGROUNDS, COLOURS, COLUMNS, ROWS, SHAPES, SIZES, Scene, SceneObject

SPLITS = ("train", "val", "test")
REFERENCE_SIZE = 64
"""Side in pixels of the image that placements refer to."""
RADII: dict[str, tuple[float, float]] = {"large": (12.0, 13.5), "medium": (9.0, 10.0), "small": (6.2, 7.2)}
"""Range of the radius of each size, in pixels of the reference; the gaps make sizes visible."""
_JITTER = 3.0
"""Largest shift of a centre from the middle of its cell, in pixels of the reference."""
_MAX_TRIES = 1000
"""Random scenes tried for each number before giving up."""
_PLACEMENT_TRIES = 20
"""Random placements tried for an object before its scene is dropped."""


@dataclass(frozen=True)
class Placement:
    """Where an object is drawn.

    Attributes:
        x: centre in pixels of the reference, from the left.
        y: centre in pixels of the reference, from the top.
        radius: radius of the circle around the shape, in pixels of the reference.
        angle: rotation in degrees.
    """

    x: float
    y: float
    radius: float
    angle: float


@dataclass(frozen=True)
class PlacedScene:
    """A scene that can be drawn.

    Attributes:
        scene: its content.
        placements: placement of each object, in their order.
        style_seed: names the random generator of colours and patterns.
    """

    scene: Scene
    placements: tuple[Placement, ...]
    style_seed: str


def scene_code(scene: Scene) -> str:
    """The scene's content as one canonical line, equal for scenes of equal content."""
    parts = [f"{o.size} {o.colour} {o.shape} {o.position}" for o in scene.objects]
    return "; ".join([scene.background, *parts])


def split_of(scene: Scene) -> str:
    """The split whose pool a scene belongs to, by a hash of its code: test 1/10, val 1/10, train the rest.

    The pools depend on no seed, so that no training set can hold a test scene.
    """
    bucket = int(hashlib.sha256(scene_code(scene).encode()).hexdigest(), 16) % 10
    return {0: "test", 1: "val"}.get(bucket, "train")


def sample_scene(rng: random.Random) -> Scene:
    """A random scene of one to three objects of distinct sizes in distinct cells."""
    count = rng.choice((1, 2, 3))
    sizes = sorted(rng.sample(list(SIZES), count), key=list(SIZES).index)
    cells = rng.sample([(row, column) for row in ROWS for column in COLUMNS], count)
    objects = tuple(
        SceneObject(size, rng.choice(list(COLOURS)), rng.choice(list(SHAPES)), row, column)
        for size, (row, column) in zip(sizes, cells, strict=True)
    )
    return Scene(rng.choice(BACKGROUNDS), objects)


def place(scene: Scene, rng: random.Random) -> tuple[Placement, ...] | None:
    """Random placements near the middles of the cells, without overlap; None where none was found."""
    placements: list[Placement] = []
    for o in scene.objects:
        for _ in range(_PLACEMENT_TRIES):
            candidate = _candidate(o, rng)
            if all(_apart(candidate, other) for other in placements):
                placements.append(candidate)
                break
        else:
            return None
    return tuple(placements)


def _candidate(o: SceneObject, rng: random.Random) -> Placement:
    radius = rng.uniform(*RADII[o.size])
    cell = REFERENCE_SIZE / 3

    def coordinate(index: int) -> float:
        value = (index + 0.5) * cell + rng.uniform(-_JITTER, _JITTER)
        return min(max(value, radius + 1), REFERENCE_SIZE - radius - 1)

    return Placement(coordinate(COLUMNS.index(o.column)), coordinate(ROWS.index(o.row)), radius, rng.uniform(-10, 10))


def _apart(a: Placement, b: Placement) -> bool:
    # Shapes do not fill their circles, so circles that overlap by one pixel still leave a visible gap.
    return (a.x - b.x) ** 2 + (a.y - b.y) ** 2 >= (a.radius + b.radius - 1) ** 2


def sample_split(
    split: str, count: int, seed: int | str, start: int = 0, distinct: bool = True
) -> Iterator[PlacedScene]:
    """Random scenes of one split's pool.

    Scene number i depends on `Random(f"{seed}-{start + i}")` alone, never on global state.

    Args:
        split: one of `SPLITS`.
        count: number of scenes.
        seed: names the collection.
        start: number of the first scene; give each split a range of its own.
        distinct: no two scenes have the same code (otherwise only placement and style of two may differ).

    Raises:
        DataError: An unknown split, or more scenes than could be found.
    """
    if split not in SPLITS:
        raise DataError(f"unknown split '{split}': choose from {', '.join(SPLITS)}")
    seen: set[str] = set()
    for index in range(start, start + count):
        rng = random.Random(f"{seed}-{index}")
        for _ in range(_MAX_TRIES):
            scene = sample_scene(rng)
            code = scene_code(scene)
            if (distinct and code in seen) or split_of(scene) != split:
                continue
            placements = place(scene, rng)
            if placements is not None:
                break
        else:
            raise DataError(f"no unseen {split} scene found for number {index}: ask for fewer than {count}")
        seen.add(code)
        yield PlacedScene(scene, placements, f"{seed}-{index}")

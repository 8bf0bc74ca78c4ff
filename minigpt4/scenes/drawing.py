"""Scenes drawn with Pillow: anti-aliased shapes in slightly varied colours on varied backgrounds."""

from __future__ import annotations

import math
import random
from dataclasses import replace

from PIL import Image, ImageChops, ImageDraw

from minigpt4.common.boxes import Box
from minigpt4.scenes.sampling import REFERENCE_SIZE, PlacedScene, Placement
from minigpt4.scenes.truth import Scene

RGB = tuple[int, int, int]

PALETTE: dict[str, RGB] = {
    "red": (214, 34, 38),
    "orange": (246, 132, 18),
    "yellow": (246, 222, 40),
    "green": (36, 160, 62),
    "blue": (36, 84, 216),
    "purple": (122, 40, 158),
    "pink": (250, 136, 186),
    "white": (246, 246, 246),
}
"""Colours of objects."""
_PLAIN: dict[str, RGB] = {"grey": (122, 122, 124), "black": (14, 14, 16), "tan": (196, 172, 132)}
"""Colours of plain backgrounds."""
_PATTERN_PAIRS: tuple[tuple[RGB, RGB], ...] = (
    ((70, 84, 96), (104, 118, 130)),
    ((96, 80, 66), (136, 118, 100)),
    ((58, 74, 64), (98, 114, 102)),
    ((78, 68, 86), (118, 106, 126)),
    ((48, 50, 56), (88, 90, 96)),
)
"""Colours of patterned backgrounds: muted, so that every object is visible on each."""
_OVERSAMPLING = 4
"""Shapes are drawn this many times larger, and shrunk."""


def draw_scene(placed: PlacedScene, size: int = REFERENCE_SIZE) -> Image.Image:
    """The image of a scene, `size` x `size` RGB.

    Args:
        placed: what to draw and where; all randomness comes from its `style_seed`.
        size: side of the image in pixels.
    """
    rng = random.Random(f"style-{placed.style_seed}")
    image = draw_background(placed.scene.background, size, rng)
    scale = size / REFERENCE_SIZE
    for o, placement in zip(placed.scene.objects, placed.placements, strict=True):
        _paste_shape(image, o.shape, _vary(PALETTE[o.colour], rng, 12), placement, scale)
    return image


def with_boxes(placed: PlacedScene) -> Scene:
    """The scene with the box of each object; the size of the image does not matter."""
    pairs = zip(placed.scene.objects, placed.placements, strict=True)
    return replace(placed.scene, objects=tuple(replace(o, box=_box_around(o.shape, spot)) for o, spot in pairs))


def _box_around(shape: str, spot: Placement) -> Box:
    """The box of what is drawn of a shape, to a quarter of a pixel of the reference."""
    mask = object_mask(shape, spot)
    bounds = mask.getbbox()
    assert bounds is not None, "every shape has an area"
    left, top, right, bottom = (bound / mask.width for bound in bounds)
    return Box(left, top, right, bottom)


def object_mask(shape: str, spot: Placement) -> Image.Image:
    """Where an object is in the reference, white on black, magnified as in drawing."""
    side = REFERENCE_SIZE * _OVERSAMPLING
    place = (spot.x * _OVERSAMPLING, spot.y * _OVERSAMPLING, spot.radius * _OVERSAMPLING)
    return shape_mask(shape, side, *place, spot.angle)


def draw_background(name: str, size: int, rng: random.Random) -> Image.Image:
    """A plain or patterned background, `size` x `size` pixels; `name` is one of `BACKGROUNDS`."""
    if name in _PLAIN:
        return Image.new("RGB", (size, size), _vary(_PLAIN[name], rng, 10))
    first, second = (_vary(colour, rng, 8) for colour in rng.choice(_PATTERN_PAIRS))
    image = Image.new("RGB", (size, size), first)
    pen = ImageDraw.Draw(image)
    step = size * rng.uniform(0.09, 0.13)
    shift = rng.uniform(0, step)
    count = math.ceil(size / step) + 1
    lines = [(i * step - shift, (i + 0.5) * step - shift) for i in range(count + 1)]
    if name == "striped":
        upright = rng.random() < 0.5
        for low, high in lines:
            pen.rectangle((low, 0, high, size) if upright else (0, low, size, high), fill=second)
    elif name == "checkered":
        cells = [i * step - shift for i in range(count + 1)]
        for row, y in enumerate(cells):
            for column, x in enumerate(cells):
                if (row + column) % 2:
                    pen.rectangle((x, y, x + step - 1, y + step - 1), fill=second)
    else:
        for low_y, high_y in lines:
            for low_x, high_x in lines:
                pen.ellipse((low_x, low_y, high_x, high_y), fill=second)
    return image


def _vary(colour: RGB, rng: random.Random, amount: int) -> RGB:
    red, green, blue = (min(255, max(0, c + rng.randint(-amount, amount))) for c in colour)
    return red, green, blue


def _paste_shape(image: Image.Image, shape: str, colour: RGB, placement: Placement, scale: float) -> None:
    """Draw one shape on a small, oversampled tile, shrink it and paste it."""
    radius, x, y = placement.radius * scale, placement.x * scale, placement.y * scale
    left, top = math.floor(x - radius) - 1, math.floor(y - radius) - 1
    tile = math.ceil(2 * radius) + 4
    big = shape_mask(
        shape,
        tile * _OVERSAMPLING,
        (x - left) * _OVERSAMPLING,
        (y - top) * _OVERSAMPLING,
        radius * _OVERSAMPLING,
        placement.angle,
    )
    image.paste(colour, (left, top), big.reduce(_OVERSAMPLING))


def shape_mask(shape: str, tile: int, x: float, y: float, radius: float, angle: float) -> Image.Image:
    """A filled shape: white on black.

    Args:
        shape: a key of `SHAPES`.
        tile: side of the mask in pixels.
        x: centre of the shape in pixels, from the left.
        y: centre of the shape in pixels, from the top.
        radius: radius of the circle around the shape, in pixels.
        angle: rotation in degrees (circles and rings have none).

    Returns:
        A mask of mode "L", `tile` x `tile`.
    """
    mask = Image.new("L", (tile, tile), 0)
    pen = ImageDraw.Draw(mask)
    if shape in ("circle", "ring", "moon"):
        pen.ellipse(_box(x, y, radius), fill=255)
        if shape == "ring":
            pen.ellipse(_box(x, y, radius * 0.52), fill=0)
        elif shape == "moon":
            hole = Image.new("L", (tile, tile), 255)
            turn = math.radians(angle - 25)
            centre = (x + 0.55 * radius * math.cos(turn), y + 0.55 * radius * math.sin(turn))
            ImageDraw.Draw(hole).ellipse(_box(*centre, radius * 0.82), fill=0)
            mask = ImageChops.multiply(mask, hole)
        return mask
    turn = math.radians(angle)
    cosine, sine = math.cos(turn), math.sin(turn)
    points = [
        (x + radius * (px * cosine - py * sine), y + radius * (px * sine + py * cosine)) for px, py in _OUTLINES[shape]
    ]
    pen.polygon(points, fill=255)
    return mask


def _box(x: float, y: float, radius: float) -> tuple[float, float, float, float]:
    return x - radius, y - radius, x + radius, y + radius


def _star() -> list[tuple[float, float]]:
    points = []
    for i in range(10):
        length = 1.0 if i % 2 == 0 else 0.4
        points.append((length * math.sin(i * math.pi / 5), -length * math.cos(i * math.pi / 5)))
    return points


def _heart() -> list[tuple[float, float]]:
    points = []
    for i in range(40):
        t = 2 * math.pi * i / 40
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 17, -(y + 2.5) / 15.5))
    return points


def _cross(arm: float = 0.3) -> list[tuple[float, float]]:
    a, b = arm, 0.96
    return [
        (-a, -b),
        (a, -b),
        (a, -a),
        (b, -a),
        (b, a),
        (a, a),
        (a, b),
        (-a, b),
        (-a, a),
        (-b, a),
        (-b, -a),
        (-a, -a),
    ]


_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "triangle": [(0.0, -1.0), (0.95, 0.75), (-0.95, 0.75)],
    "star": _star(),
    "heart": _heart(),
    "cross": _cross(),
}

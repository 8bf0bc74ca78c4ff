"""The strip code: what each of an image's strips shows, the language that the two halves of the tiny MiniGPT-v2 share.

MiniGPT-v2 joins each four neighbouring patches, so that an image of 8 x 8 patches is sixteen strips, two in each row. A
strip's code is about the object of which it shows the largest share: size, colour, shape and box; and about the
background. The vision side learns features from which a linear map makes these codes; the language model learns to
read such codes through another linear map. Both maps are thrown away: alignment has to find their product.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minigpt4.common.boxes import Box
from minigpt4.scenes.drawing import object_mask, with_boxes
from minigpt4.scenes.sampling import REFERENCE_SIZE, PlacedScene
from minigpt4.scenes.truth import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene
from recipes.tiny.sizes import PATCH_SIZE

MERGED = 4
ROWS = REFERENCE_SIZE // PATCH_SIZE
COLUMNS = ROWS // MERGED
NUM_STRIPS = ROWS * COLUMNS
MIN_SHARE = 0.03
"""Least share of an object that makes a strip its own: below, a few pixels at an edge."""
GROUPS: dict[str, tuple[str, ...]] = {
    "size": ("none", *SIZES),
    "colour": ("none", *COLOURS),
    "shape": ("none", *SHAPES),
    "background": (*BACKGROUNDS, "plain"),
}
"""Words of a code, one of each group."""
WORDS = tuple((group, word) for group, words in GROUPS.items() for word in words)
FREQUENCIES = (0.5, 1.0, 2.0)
"""Waves over the image's side, of which each side of a box is the sines and cosines."""
SIDES = 4 * 2 * len(FREQUENCIES)
CODE_WIDTH = len(WORDS) + SIDES


@dataclass(frozen=True)
class StripScene:
    """A scene, its objects with boxes, and its code.

    Attributes:
        scene: the content.
        words: for each strip the index of its word in each group, (NUM_STRIPS, 4) int64.
        sides: waves of the box's sides, (NUM_STRIPS, SIDES); 0 where a strip shows no object.
    """

    scene: Scene
    words: Tensor
    sides: Tensor

    def code(self) -> Tensor:
        """One-hot words and waves, (NUM_STRIPS, CODE_WIDTH)."""
        return codes(self.words, self.sides)


def codes(words: Tensor, sides: Tensor) -> Tensor:
    """Codes (..., NUM_STRIPS, CODE_WIDTH) of words and sides."""
    hot = [torch.nn.functional.one_hot(words[..., i], len(group)) for i, group in enumerate(GROUPS.values())]
    return torch.cat([*(part.to(sides.dtype) for part in hot), sides], -1)


def strip_scene(placed: PlacedScene) -> StripScene:
    """The code of a scene, as `draw_scene` draws it."""
    scene = with_boxes(placed)
    owners = _owners(placed)
    words = [[0, 0, 0, GROUPS["background"].index(scene.background)] for _ in range(NUM_STRIPS)]
    sides = torch.zeros(NUM_STRIPS, SIDES)
    for strip, owner in enumerate(owners):
        if owner is not None:
            o = scene.objects[owner]
            assert o.box is not None
            attributes = (o.size, o.colour, o.shape)
            words[strip][:3] = [
                GROUPS[g].index(w) for g, w in zip(("size", "colour", "shape"), attributes, strict=True)
            ]
            sides[strip] = waves(o.box)
    return StripScene(scene, torch.tensor(words), sides)


def waves(box: Box) -> Tensor:
    """Sines and cosines of a box's sides, (SIDES,)."""
    angles = [2 * math.pi * f * side for side in (box.left, box.top, box.right, box.bottom) for f in FREQUENCIES]
    return torch.tensor([wave(angle) for angle in angles for wave in (math.sin, math.cos)])


def _owners(placed: PlacedScene) -> list[int | None]:
    """For each strip, which object it shows the largest share of; None: none to speak of."""
    if not placed.scene.objects:
        return [None] * NUM_STRIPS
    shares = []
    for o, spot in zip(placed.scene.objects, placed.placements, strict=True):
        mask = np.asarray(object_mask(o.shape, spot), dtype=np.float32)
        strips = mask.reshape(ROWS, mask.shape[0] // ROWS, COLUMNS, -1).sum((1, 3)).flatten()
        shares.append(strips / strips.sum())
    table = np.stack(shares)
    best = table.argmax(0)
    return [int(i) if table[i, strip] >= MIN_SHARE else None for strip, i in enumerate(best)]


def blurred(clean: Tensor, rng: torch.Generator, amount: float) -> Tensor:
    """Codes (B, NUM_STRIPS, CODE_WIDTH) as imprecise as those of a projected image: what the vision side makes of them
    is never exact. Noise, a share of a neighbouring strip mixed in, and here and there nothing.

    Args:
        clean: the codes.
        rng: source of every choice.
        amount: 0: none; 1: all of it.
    """
    batch = len(clean)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=rng)

    share = draw(batch, NUM_STRIPS, 1) * 0.5 * (draw(batch, NUM_STRIPS, 1) < 0.2)
    shift = random.Random(int(torch.randint(2**31, (1,), generator=rng))).choice((-2, -1, 1, 2))
    mixed = (1 - share) * clean + share * clean.roll(shift, 1)
    noise = torch.randn(clean.shape, generator=rng) * draw(batch, 1, 1) * 0.25
    return torch.lerp(clean, (mixed + noise) * (draw(batch, NUM_STRIPS, 1) >= 0.02), amount)

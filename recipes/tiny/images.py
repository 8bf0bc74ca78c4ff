"""Images to pre-train the vision side on, drawn in memory, with their codes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minigpt4.scenes.drawing import draw_background, draw_scene
from minigpt4.scenes.sampling import REFERENCE_SIZE, PlacedScene, sample_split
from minigpt4.scenes.truth import BACKGROUNDS, Scene
from recipes.tiny.codes import encode_scene

EMPTY_SHARE = 0.05
BACKGROUND_SLOT = 3


@dataclass(frozen=True)
class SceneImages:
    """Drawn scenes.

    Attributes:
        images: (N, 3, S, S) uint8.
        codes: scene codes, (N, 16) int64.
        slots: which object covers each patch's middle, (N, P) int64; `BACKGROUND_SLOT` where none does.
        scenes: what was drawn, N of them.
    """

    images: Tensor
    codes: Tensor
    slots: Tensor
    scenes: list[Scene]

    def __len__(self) -> int:
        return len(self.scenes)


def draw_images(split: str, count: int, seed: str, patch: int, empty_share: float = EMPTY_SHARE) -> SceneImages:
    """Draw scenes of one split's pool, some of them empty.

    Args:
        split: pool that the scenes come from.
        count: how many.
        seed: names the collection.
        patch: side of the backbone's patches in pixels.
        empty_share: share of images without objects.
    """
    images, codes, slots, scenes = [], [], [], []
    for placed, image in drawn_scenes(split, count, seed, empty_share):
        images.append(np.asarray(image))
        codes.append(encode_scene(placed.scene))
        slots.append(_patch_slots(placed, patch))
        scenes.append(placed.scene)
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return SceneImages(stacked, torch.tensor(codes), torch.tensor(slots), scenes)


def drawn_scenes(split: str, count: int, seed: str, empty_share: float) -> Iterator[tuple[PlacedScene, Image.Image]]:
    """Scenes with their images; arguments as for `draw_images`."""
    for number, placed in enumerate(sample_split(split, count, seed, distinct=False)):
        rng = random.Random(f"empty-{seed}-{number}")
        if rng.random() >= empty_share:
            yield placed, draw_scene(placed)
        elif rng.random() < 0.5:
            background = rng.choice(BACKGROUNDS)
            image = draw_background(background, REFERENCE_SIZE, rng)
            yield PlacedScene(Scene(background, ()), (), placed.style_seed), image
        else:
            yield PlacedScene(Scene("plain", ()), (), placed.style_seed), _even_image(rng)


def _even_image(rng: random.Random) -> Image.Image:
    """An image of one colour that is none of the plain backgrounds; often white."""
    if rng.random() < 0.25:
        level = rng.randint(235, 255)
        return Image.new("RGB", (REFERENCE_SIZE, REFERENCE_SIZE), (level, level, level))
    while True:
        red, green, blue = (rng.randint(0, 255) for _ in range(3))
        # Dark, grey and tan backgrounds have names of their own.
        if max(red, green, blue) > 70 and max(red, green, blue) - min(red, green, blue) > 90:
            return Image.new("RGB", (REFERENCE_SIZE, REFERENCE_SIZE), (red, green, blue))


def _patch_slots(placed: PlacedScene, patch: int) -> list[int]:
    side = REFERENCE_SIZE // patch
    labels = [BACKGROUND_SLOT] * (side * side)
    for slot, spot in enumerate(placed.placements):
        for index in range(side * side):
            y, x = ((i + 0.5) * patch for i in divmod(index, side))
            if (x - spot.x) ** 2 + (y - spot.y) ** 2 < (spot.radius + 1) ** 2:
                labels[index] = slot
    return labels

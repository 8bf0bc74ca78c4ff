"""Drawn scenes that training never saw, and what a right answer about them says."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from minigpt4.scenes.drawing import draw_scene
from minigpt4.scenes.sampling import PlacedScene, sample_split


@dataclass(frozen=True)
class Picture:
    """A scene and its drawing."""

    placed: PlacedScene
    image: Image.Image

    @property
    def words(self) -> list[str]:
        """Colour and shape of each object."""
        return [f"{o.colour} {o.shape}" for o in self.placed.scene.objects]

    def told_by(self, answer: str) -> bool:
        """Whether an answer names all objects."""
        return all(words in answer for words in self.words)

    def save(self, path: Path) -> str:
        self.image.save(path)
        return str(path)


@cache
def pictures(count: int = 10) -> tuple[Picture, ...]:
    return tuple(Picture(placed, draw_scene(placed, 128)) for placed in sample_split("test", count, seed=3))

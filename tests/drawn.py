"""Drawn scenes that training never saw, and what a correct answer about them contains."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from minigpt4.scenes.drawing import draw_scene
from minigpt4.scenes.sampling import PlacedScene, sample_split


@dataclass(frozen=True)
class DrawnScene:
    """A scene and its image."""

    placed: PlacedScene
    image: Image.Image

    @property
    def words(self) -> list[str]:
        """Colour and shape of each object."""
        return [f"{o.colour} {o.shape}" for o in self.placed.scene.objects]

    def is_named_in(self, answer: str) -> bool:
        """Whether an answer names all objects."""
        return all(words in answer for words in self.words)

    def save(self, path: Path) -> str:
        self.image.save(path)
        return str(path)


@cache
def drawn_scenes(count: int = 10) -> tuple[DrawnScene, ...]:
    return tuple(DrawnScene(placed, draw_scene(placed, 128)) for placed in sample_split("test", count, seed=3))

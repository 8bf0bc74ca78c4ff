"""Boxes in texts: `{<x1><y1><x2><y2>}` in hundredths of the image's sides, as MiniGPT-v2 reads and writes them."""

from __future__ import annotations

import re
from dataclasses import dataclass

TASKS = ("caption", "vqa", "refer", "identify", "grounding", "detection")
"""What MiniGPT-v2 can be asked to do, as `[vqa]` in front of a question (arXiv:2310.09478, table 1)."""
GRID = 100
_TOKEN = re.compile(
    r"<p>(?P<label>.*?)</p>" + r"|\{\s*" + r"\s*".join(rf"<\s*(?P<{side}>\d{{1,3}})\s*>" for side in "abcd") + r"\s*\}",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in an image; the image's width and height are 1.

    Attributes:
        left: distance of its left side from the image's.
        top: distance of its upper side from the image's.
        right: distance of its right side from the image's left side.
        bottom: distance of its lower side from the image's upper side.
        label: what is in it; empty: nothing is said.
    """

    left: float
    top: float
    right: float
    bottom: float
    label: str = ""

    @property
    def text(self) -> str:
        """The box without its label, sides rounded to hundredths within the image."""
        sides = (self.left, self.top, self.right, self.bottom)
        return "{" + "".join(f"<{min(GRID, max(0, round(GRID * side)))}>" for side in sides) + "}"


def find_boxes(text: str) -> list[Box]:
    """The boxes in a text, in order; those outside the image or without an area are left out.

    A box has the label `<p>label</p>` in front of it; boxes joined by `<delim>` share one.
    """
    boxes: list[Box] = []
    label, end = "", 0
    for token in _TOKEN.finditer(text):
        if text[end : token.start()].strip() not in ("", "<delim>"):
            label = ""
        end = token.end()
        if token["label"] is not None:
            label = token["label"].strip()
            continue
        left, top, right, bottom = (int(token[side]) for side in "abcd")
        if left < right <= GRID and top < bottom <= GRID:
            boxes.append(Box(left / GRID, top / GRID, right / GRID, bottom / GRID, label))
    return boxes


class AnswerText(str):
    """A model's answer, which knows the boxes in it."""

    __slots__ = ()

    @property
    def boxes(self) -> list[Box]:
        """As `find_boxes`."""
        return find_boxes(self)


def with_task(question: str, task: str | None) -> str:
    """A question with the identifier of a task in front; None: as it is."""
    return question if task is None else f"[{task}] {question}"

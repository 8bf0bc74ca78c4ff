"""Boxes in texts: `{<x1><y1><x2><y2>}` in hundredths of the image's sides, as MiniGPT-v2 reads and writes them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from minigpt4.common.errors import DataError, did_you_mean, shown

TASKS = ("caption", "vqa", "refer", "identify", "grounding", "detection")
"""What MiniGPT-v2 can be asked to do, as `[vqa]` in front of a question (arXiv:2310.09478, table 1)."""
GRID = 100
_TOKEN = re.compile(
    r"<p>(?P<label>.*?)</p>" + r"|\{\s*" + r"\s*".join(rf"<\s*(?P<{side}>\d{{1,3}})\s*>" for side in "abcd") + r"\s*\}",
    re.DOTALL,
)
_LIKE_A_BOX = re.compile(r"\{\s*(?:<(?:[-+.,\d\s]|nan|inf)+>\s*)+\}", re.IGNORECASE)


Sides = tuple[float, float, float, float]
"""Left, top, right and bottom side of a rectangle."""


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
    def sides(self) -> Sides:
        """The box without its label."""
        return self.left, self.top, self.right, self.bottom

    @property
    def text(self) -> str:
        """The box without its label, in hundredths within the image, of which it is at least one wide and high."""
        left, top, right, bottom = (min(GRID, max(0, round(GRID * side))) for side in self.sides)
        left, top = min(left, GRID - 1), min(top, GRID - 1)
        return f"{{<{left}><{top}><{max(right, left + 1)}><{max(bottom, top + 1)}>}}"


def iou(a: Sides, b: Sides) -> float:
    """Intersection over union of two rectangles, 0 where neither has an area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / both if both > 0 else 0.0


def box_of_pixels(bbox: Any, width: Any, height: Any, label: str = "") -> Box:
    """The box of an annotation; what lies outside the image is cut off.

    Args:
        bbox: [left, top, width, height] in pixels, as COCO writes it.
        width: width of the image in pixels.
        height: height of the image in pixels.
        label: what is in the box.

    Raises:
        DataError: It is no such list, is empty or outside the image, or the image has no size.
    """
    if not (is_number(width) and is_number(height) and width > 0 and height > 0):
        raise DataError(f"'width' and 'height' should be pixels above 0, found {shown(width)} and {shown(height)}")
    if not (isinstance(bbox, list) and len(bbox) == 4 and all(map(is_number, bbox)) and bbox[2] > 0 and bbox[3] > 0):
        raise DataError(f"'bbox' should be [x, y, width, height] in pixels, found {shown(bbox)}")
    x, y, w, h = bbox
    left, top, right, bottom = max(0.0, x / width), max(0.0, y / height), (x + w) / width, (y + h) / height
    if left >= 1 or top >= 1 or right <= 0 or bottom <= 0:
        raise DataError(f"'bbox' {bbox} lies outside the image, {width} x {height}")
    return Box(left, top, min(1.0, right), min(1.0, bottom), label)


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a finite number."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


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


def annotated_boxes(text: str) -> list[Box]:
    """As `find_boxes`, of an annotation, where nothing may look like a box and be none.

    A box without an area is left out only: the published files, whose sides are cut to hundredths, have such boxes.

    Raises:
        DataError: A box has another form, or is not inside the image.
    """
    for found in _LIKE_A_BOX.finditer(text):
        token = _TOKEN.fullmatch(found[0])
        left, top, right, bottom = (int(token[side]) for side in "abcd") if token else (1, 1, 0, 0)
        if not (left <= right <= GRID and top <= bottom <= GRID):
            raise DataError(
                f"the box {found[0]} should be {{<left><top><right><bottom>}} in hundredths of the image's sides: "
                f"whole numbers from 0 to {GRID}, left below right and top below bottom; of pixels, write "
                f"{GRID} * x / width and {GRID} * y / height"
            )
    return find_boxes(text)


class AnswerText(str):
    """A model's answer, which knows the boxes in it."""

    __slots__ = ()

    @property
    def boxes(self) -> list[Box]:
        """As `find_boxes`."""
        return find_boxes(self)


def with_task(question: str, task: str | None) -> str:
    """A question with the identifier of a task in front; None: as it is.

    Raises:
        DataError: It has that of another task already.
    """
    own = _identifier(question)
    if task is None or own == task:
        return question
    if own in TASKS:
        raise DataError(f"the question {shown(question)} begins with [{own}], but the task is {task}; leave one out")
    return f"[{task}] {question}"


def misspelt(question: str) -> str:
    """What in a question nearly is the identifier of a task, or a box; otherwise empty.

    Other identifiers are left alone: a model may have been trained on tasks of its own.
    """
    try:
        annotated_boxes(question)
    except DataError as error:
        return str(error)
    own = _identifier(question)
    hint = did_you_mean(own.lower(), TASKS)
    return f"[{own}] is no task; {hint}" if own not in TASKS and "mean" in hint else ""


def _identifier(question: str) -> str:
    found = re.match(r"\s*\[(\w+)\]", question)
    return found[1] if found else ""

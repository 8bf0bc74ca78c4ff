"""Average precision of detected boxes, by pycocotools' COCOeval."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from typing import Any

from minigpt4.common.boxes import GRID, Box

Detections = Iterable[tuple[Sequence[Box], Sequence[Box]]]
"""(found boxes, true boxes) of each image."""


def average_precision(images: Detections) -> dict[str, float]:
    """COCO's AP, the mean over IoU 0.5 to 0.95, and AP50, over all labels of true boxes.

    Boxes that a language model writes have no confidence: all get the same, so they count in the order of the images
    and of each answer. Labels match whatever their case. Boxes with a label that no image has do not count, as in COCO.

    Args:
        images: (found boxes, true boxes) of each image.

    Returns:
        {"AP": ..., "AP50": ...}; empty where no image has a box.
    """
    listed = [(list(found), list(true)) for found, true in images]
    names = sorted({_name(box) for _, true in listed for box in true})
    if not names:
        return {}
    categories = {name: number for number, name in enumerate(names, 1)}
    found = [_entry(box, number, categories) for number, (boxes, _) in enumerate(listed) for box in boxes]
    true = [_entry(box, number, categories) for number, (_, boxes) in enumerate(listed) for box in boxes]
    scored = [entry | {"score": 1.0} for entry in found if entry["category_id"] is not None]
    if not scored:
        return {"AP": 0.0, "AP50": 0.0}
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": number} for number in range(len(listed))],
            "categories": [{"id": number, "name": name} for name, number in categories.items()],
            # COCOeval takes an annotation with the id 0 for none.
            "annotations": [entry | {"id": number} for number, entry in enumerate(true, 1)],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(scored), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"AP": float(evaluation.stats[0]), "AP50": float(evaluation.stats[1])}


def _name(box: Box) -> str:
    return " ".join(box.label.casefold().split())


def _entry(box: Box, image: int, categories: dict[str, int]) -> dict[str, Any]:
    """The box in COCO's layout, in hundredths of the image's sides: the unit has no effect on IoU.

    Whole numbers are exact there, so that an IoU of exactly 0.5 is not computed as less.
    """
    left, top, right, bottom = (round(GRID * side, 9) for side in box.sides)
    width, height = right - left, bottom - top
    return {
        "image_id": image,
        "category_id": categories.get(_name(box)),
        "bbox": [left, top, width, height],
        "area": width * height,
        "iscrowd": 0,
    }

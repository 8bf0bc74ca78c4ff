"""The three kinds of data of `train_configs/minigpt4_tasks_joint.yaml`, a few images of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

COLOURS = ("red", "blue", "green", "orange", "purple", "gray")
RATIOS = {"cc_sbu_align": 2, "detection": 3, "tables": 1}
"""Samples of each kind in six, as in the recipe."""


def write_joint(folder: Path) -> Path:
    """A folder for `paths.data_root`, with one image of each kind per colour."""
    _write_descriptions(folder / "cc_sbu_align")
    _write_boxes(folder / "detection")
    _write_tables(folder / "tables")
    return folder


def _write_descriptions(folder: Path) -> None:
    (folder / "image").mkdir(parents=True)
    annotations = []
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (48, 40), colour).save(folder / "image" / f"{number}.jpg")
        annotations.append({"image_id": str(number), "caption": f"The image is {colour}."})
    (folder / "filter_cap.json").write_text(json.dumps({"annotations": annotations}))


def _write_boxes(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations = []
    for number, colour in enumerate(COLOURS):
        image = Image.new("RGB", (100, 50), "white")
        image.paste(colour, (10 * number, 10, 10 * number + 40, 40))
        image.save(folder / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 100, "height": 50})
        annotations.append({"image_id": number, "category_id": 1, "bbox": [10 * number, 10, 40, 30]})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
    (folder / "instances.json").write_text(json.dumps(content))


def _write_tables(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (60, 30), colour).save(folder / f"{number}.png")
        (folder / f"{number}.csv").write_text(f"name,age\n{colour},{number}\n")

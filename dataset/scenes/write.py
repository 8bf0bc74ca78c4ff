"""Writing of a collection of scenes in Flickr30k's layout."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

from dataset.scenes.captions import CAPTIONS_PER_SCENE, captions_of
from dataset.scenes.draw import draw_scene
from dataset.scenes.scene import SPLITS, PlacedScene, sample_split
from minigpt4.common.errors import DataError

ANNOTATIONS_NAME = "flickr_annotations_30k.csv"
SCENES_NAME = "scenes.json"
COLUMNS = ("raw", "sentids", "split", "filename", "img_id")


def write_scenes(out: Path, counts: Mapping[str, int], seed: int, size: int = 64) -> int:
    """Draw and describe scenes: `images/*.png`, the annotation CSV and the ground truth `scenes.json`.

    Args:
        out: folder to write into; made where absent.
        counts: number of scenes by split.
        seed: names the collection: equal arguments give equal files.
        size: side of the pictures in pixels.

    Returns:
        The number of scenes written.

    Raises:
        DataError: a size or count that cannot be drawn, or a folder that cannot be written.
    """
    if size < 16:
        raise DataError(f"pictures of {size} pixels are too small for the shapes: use --size 16 or more")
    if min(counts.values()) < 0:
        raise DataError(f"a split cannot have a negative number of scenes: {dict(counts)}")
    truth: dict[str, object] = {}
    try:
        (out / "images").mkdir(parents=True, exist_ok=True)
        with (out / ANNOTATIONS_NAME).open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(COLUMNS)
            for number, (split, placed) in enumerate(_all_scenes(counts, seed)):
                name = f"scene_{number:06d}.png"
                draw_scene(placed, size).save(out / "images" / name, compress_level=1)
                rows.writerow(_row(placed, split, name, number))
                truth[name] = placed.scene.to_json()
        (out / SCENES_NAME).write_text(json.dumps(truth, indent=0), encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write the scenes into {out}: {error.strerror or error}") from error
    return len(truth)


def _all_scenes(counts: Mapping[str, int], seed: int) -> Iterator[tuple[str, PlacedScene]]:
    start = 0
    for split in SPLITS:
        count = counts.get(split, 0)
        for placed in sample_split(split, count, seed, start):
            yield split, placed
        start += count


def _row(placed: PlacedScene, split: str, name: str, number: int) -> list[str | int]:
    captions = captions_of(placed.scene, random.Random(f"captions-{placed.style_seed}"))
    first = number * CAPTIONS_PER_SCENE
    sentids = list(range(first, first + CAPTIONS_PER_SCENE))
    return [json.dumps(captions), json.dumps(sentids), split, name, number]

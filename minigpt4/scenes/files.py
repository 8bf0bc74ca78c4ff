"""Collections of scenes on disk: in Flickr30k's layout, and as webdataset shards."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import webdataset

from minigpt4.common.errors import DataError
from minigpt4.common.files import write_text
from minigpt4.scenes.captions import CAPTIONS_PER_SCENE, caption_in, captions_of
from minigpt4.scenes.drawing import draw_scene, with_boxes
from minigpt4.scenes.questions import TASKS, Question, questions_of
from minigpt4.scenes.sampling import SPLITS, PlacedScene, sample_split
from minigpt4.scenes.truth import box_sides

ANNOTATIONS_NAME = "flickr_annotations_30k.csv"
SCENES_NAME = "scenes.json"
QUESTIONS_FOLDER = "questions"
"""Folder of the questions, one file for each task."""
COLUMNS = ("raw", "sentids", "split", "filename", "img_id")
MIN_SIZE = 16
"""Smallest side of an image in pixels."""
SOURCES = {"laion": ("count", "background"), "cc_sbu": ("there", "relation", "place")}
"""Source of shards -> the families of captions it has."""
RATIO = {"laion": 115, "cc_sbu": 14}
"""Millions of images in the real sources."""


def write_scenes(
    out: Path, counts: Mapping[str, int], seed: int, size: int = 64, questions: bool = False, first: int = 0
) -> int:
    """Draw and describe scenes: `images/*.png`, the annotation CSV and the ground truth `scenes.json`.

    Args:
        out: folder to write into, created if necessary.
        counts: number of scenes by split.
        seed: names the collection; equal arguments give equal files.
        size: side of the images in pixels.
        questions: also write the questions of MiniGPT-v2's tasks, a file `questions/TASK.jsonl` each.
        first: number of the first scene, for collections whose images and ids differ from those of another one.

    Returns:
        The number of scenes written.

    Raises:
        DataError: A size or count that cannot be drawn, or a folder that cannot be written.
    """
    if size < MIN_SIZE:
        raise DataError(f"images of {size} pixels are too small for the shapes: use --size {MIN_SIZE} or more")
    if min(counts.values()) < 0:
        raise DataError(f"a split cannot have a negative number of scenes: {dict(counts)}")
    if first < 0:
        raise DataError(f"scenes are numbered from 0: use --first 0 or more, not {first}")
    truth: dict[str, object] = {}
    asked: dict[str, list[str]] = {task: [] for task in TASKS} if questions else {}
    try:
        (out / "images").mkdir(parents=True, exist_ok=True)
        with (out / ANNOTATIONS_NAME).open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(COLUMNS)
            for number, (split, placed) in enumerate(_all_scenes(counts, seed, first), first):
                name = f"scene_{number:06d}.png"
                draw_scene(placed, size).save(out / "images" / name, compress_level=1)
                rows.writerow(_row(placed, split, name, number))
                scene = with_boxes(placed)
                truth[name] = scene.to_json()
                for task, lines in asked.items():
                    found = questions_of(scene, task, random.Random(f"{task}-{placed.style_seed}"))
                    lines += [_question_line(question, split, name, at) for at, question in enumerate(found)]
        write_text(out / SCENES_NAME, json.dumps(truth, indent=0))
        for task, lines in asked.items():
            (out / QUESTIONS_FOLDER).mkdir(exist_ok=True)
            write_text(out / QUESTIONS_FOLDER / f"{task}.jsonl", "".join(lines))
    except OSError as error:
        raise DataError(f"cannot write the scenes into {out}: {error.strerror or error}") from error
    return len(truth)


def _all_scenes(counts: Mapping[str, int], seed: int, start: int) -> Iterator[tuple[str, PlacedScene]]:
    for split in SPLITS:
        count = counts.get(split, 0)
        for placed in sample_split(split, count, seed, start):
            yield split, placed
        start += count


def _question_line(question: Question, split: str, image: str, number: int) -> str:
    """A row of the reader jsonl."""
    row: dict[str, object] = {
        "id": f"{Path(image).stem}_{question.task}_{number}",
        "image": image,
        "split": split,
        "kind": question.kind,
        "answers": question.answers,
    }
    if question.text:
        row["question"] = question.text
    if question.boxes:
        row["boxes"] = [{"box": box_sides(box)} | ({"label": box.label} if box.label else {}) for box in question.boxes]
    return json.dumps(row) + "\n"


def _row(placed: PlacedScene, split: str, name: str, number: int) -> list[str | int]:
    captions = captions_of(placed.scene, random.Random(f"captions-{placed.style_seed}"))
    first = number * CAPTIONS_PER_SCENE
    sentids = list(range(first, first + CAPTIONS_PER_SCENE))
    return [json.dumps(captions), json.dumps(sentids), split, name, number]


def write_shards(out: Path, scenes: int, per_shard: int, seed: int, size: int = 64) -> dict[str, list[Path]]:
    """Draw and describe training scenes in the layout that img2dataset writes: jpg, txt and json a sample.

    Args:
        out: folder to write into: `laion/laion_dataset/00000.tar`, `cc_sbu/cc_sbu_dataset/00000.tar` and so on.
        scenes: number of scenes in both sources together, divided by `RATIO`.
        per_shard: scenes of a shard.
        seed: names the collection; equal arguments give equal files.
        size: side of the images in pixels.

    Returns:
        The shards of each source.

    Raises:
        DataError: Fewer scenes than sources, or a folder that cannot be written.
    """
    if scenes < len(SOURCES) or per_shard < 1:
        raise DataError(f"{scenes} scenes in shards of {per_shard} are too few: use --scenes 2 or more")
    few = max(1, round(scenes * RATIO["cc_sbu"] / sum(RATIO.values())))
    counts = {"laion": scenes - few, "cc_sbu": few}
    placed = sample_split("train", scenes, seed)
    try:
        return {
            source: _write_source(
                out / source / f"{source}_dataset", source, [next(placed) for _ in range(count)], per_shard, size
            )
            for source, count in counts.items()
        }
    except OSError as error:
        raise DataError(f"cannot write the shards into {out}: {error.strerror or error}") from error


def _write_source(folder: Path, source: str, scenes: list[PlacedScene], per_shard: int, size: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, start in enumerate(range(0, len(scenes), per_shard)):
        paths.append(folder / f"{number:05d}.tar")
        with webdataset.TarWriter(str(paths[-1]), encoder=False, mtime=0) as tar:
            for row, placed in enumerate(scenes[start : start + per_shard], start):
                tar.write(_sample(f"{row:09d}", placed, SOURCES[source], size))
    return paths


def _sample(key: str, placed: PlacedScene, families: tuple[str, ...], size: int) -> dict[str, str | bytes]:
    caption = caption_in(placed.scene, families, random.Random(f"caption-{placed.style_seed}"))
    image = io.BytesIO()
    draw_scene(placed, size).save(image, "JPEG", quality=95)
    fields = {"caption": caption, "key": key, "status": "success", "width": size, "height": size}
    return {
        "__key__": key,
        "jpg": image.getvalue(),
        "json": json.dumps(fields).encode(),
        "txt": caption.encode(),
    }

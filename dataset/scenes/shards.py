"""Scenes as stage 1 has its data: two sources of captioned pictures, worded differently, in webdataset shards."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import webdataset

from dataset.scenes.captions import caption_in
from dataset.scenes.draw import draw_scene
from dataset.scenes.scene import PlacedScene, sample_split
from minigpt4.common.errors import DataError

SOURCES = {"laion": ("count", "background"), "cc_sbu": ("there", "relation", "place")}
"""Source -> the families of captions it has."""
RATIO = {"laion": 115, "cc_sbu": 14}
"""Millions of pictures in the real sources."""


def write_shards(out: Path, scenes: int, per_shard: int, seed: int, size: int = 64) -> dict[str, list[Path]]:
    """Draw and describe training scenes in the layout that img2dataset downloads: jpg, txt and json a sample.

    Args:
        out: Folder; `laion/laion_dataset/00000.tar`, `cc_sbu/cc_sbu_dataset/00000.tar` and so on go below it.
        scenes: In both sources together, shared out as in reality.
        per_shard: Scenes a shard.
        seed: Names the collection: equal arguments give equal files.
        size: Side of the pictures in pixels.

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
    picture = io.BytesIO()
    draw_scene(placed, size).save(picture, "JPEG", quality=95)
    fields = {"caption": caption, "key": key, "status": "success", "width": size, "height": size}
    return {
        "__key__": key,
        "jpg": picture.getvalue(),
        "json": json.dumps(fields).encode(),
        "txt": caption.encode(),
    }

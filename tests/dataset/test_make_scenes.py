"""The scene generator: deterministic, splits disjoint, captions that tell the truth, Flickr30k's layout."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from dataset.make_scenes import main
from minigpt4.common.errors import DataError
from minigpt4.scenes.captions import captions_of, favoured_family, relation
from minigpt4.scenes.drawing import draw_scene
from minigpt4.scenes.sampling import sample_split, scene_code, split_of
from minigpt4.scenes.scores import named_objects, names_all
from minigpt4.scenes.vocabulary import BACKGROUNDS, COLOURS, SHAPES, Scene, SceneObject, load_scenes


def make(out: Path, seed: int = 0, extra: tuple[str, ...] = ()) -> Path:
    arguments = ["--out", str(out), "--train", "30", "--val", "5", "--test", "10", "--seed", str(seed)]
    assert main([*arguments, *extra]) == 0
    return out


def read_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "flickr_annotations_30k.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_layout_is_that_of_flickr30k(tmp_path: Path) -> None:
    folder = make(tmp_path / "scenes")
    rows = read_rows(folder)
    assert list(rows[0]) == ["raw", "sentids", "split", "filename", "img_id"]
    assert Counter(row["split"] for row in rows) == {"train": 30, "val": 5, "test": 10}
    assert [int(row["img_id"]) for row in rows] == list(range(45))
    assert [i for row in rows for i in json.loads(row["sentids"])] == list(range(45 * 5))
    truth = load_scenes(folder / "scenes.json")
    assert set(truth) == {row["filename"] for row in rows}
    for row in rows:
        captions = json.loads(row["raw"])
        assert len(set(captions)) == 5
        with Image.open(folder / "images" / row["filename"]) as image:
            assert image.size == (64, 64) and image.mode == "RGB"
        assert all(names_all(caption, truth[row["filename"]]) for caption in captions)


def test_equal_seeds_give_equal_files_and_other_seeds_others(tmp_path: Path) -> None:
    first, again, other = make(tmp_path / "a"), make(tmp_path / "b"), make(tmp_path / "c", seed=1)
    names = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert len(names) == 47
    assert all((first / name).read_bytes() == (again / name).read_bytes() for name in names)
    assert (first / "scenes.json").read_bytes() != (other / "scenes.json").read_bytes()


def test_splits_share_no_scene_under_any_seed() -> None:
    codes = {
        split: {scene_code(p.scene) for seed in (0, 7) for p in sample_split(split, 400, seed, start)}
        for split, start in (("train", 0), ("val", 400), ("test", 800))
    }
    assert not codes["train"] & codes["test"]
    assert not codes["train"] & codes["val"]
    assert not codes["val"] & codes["test"]


def test_scenes_of_one_split_differ() -> None:
    scenes = [p.scene for p in sample_split("train", 2000, 3)]
    assert len({scene_code(scene) for scene in scenes}) == 2000
    assert {split_of(scene) for scene in scenes} == {"train"}
    assert {len(scene.objects) for scene in scenes} == {1, 2, 3}
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert {o.colour for scene in scenes for o in scene.objects} == set(COLOURS)
    assert {o.shape for scene in scenes for o in scene.objects} == set(SHAPES)


def test_five_captions_differ_and_each_names_every_object() -> None:
    for placed in sample_split("val", 500, 0):
        captions = captions_of(placed.scene, random.Random(placed.style_seed))
        assert len(set(captions)) == 5
        assert len({" ".join(caption.split()[:2]) for caption in captions}) >= 3
        for caption in captions:
            assert names_all(caption, placed.scene), (caption, placed.scene)
            assert caption[0].isupper() and caption.endswith(".")


def test_wording_depends_on_content() -> None:
    favoured = Counter(favoured_family(placed.scene) for placed in sample_split("train", 500, 0))
    assert len(favoured) == 5 and min(favoured.values()) > 20


def test_empty_scene_is_described_as_empty() -> None:
    captions = captions_of(Scene("black", ()), random.Random(0))
    assert len(set(captions)) == 5
    assert all("black" in caption and not named_objects(caption) for caption in captions)


def test_relation_is_seen_from_the_second_object() -> None:
    high = SceneObject("large", "red", "star", "top", "left")
    low = SceneObject("small", "blue", "ring", "bottom", "left")
    assert (relation(high, low), relation(low, high)) == ("above", "below")


def test_pictures_have_the_size_asked_for_and_show_the_objects_colour(tmp_path: Path) -> None:
    folder = make(tmp_path / "big", extra=("--size", "96"))
    with Image.open(folder / "images" / "scene_000000.png") as image:
        assert image.size == (96, 96)
    for placed in sample_split("train", 40, 5):
        image = draw_scene(placed)
        o, spot = placed.scene.objects[0], placed.placements[0]
        if o.shape in ("circle", "square", "cross", "heart", "star"):
            red, green, blue = image.getpixel((round(spot.x), round(spot.y)))
            assert {"red": red > 150 > max(green, blue), "green": green > max(red, blue)}.get(o.colour, True)


def test_bad_arguments_give_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path), "--size", "4"]) == 2
    assert main(["--out", str(tmp_path), "--train", "-1"]) == 2
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert main(["--out", str(blocked / "sub"), "--train", "1"]) == 2
    assert capsys.readouterr().err.count("error: ") == 3
    with pytest.raises(DataError, match="unknown split"):
        next(sample_split("tset", 1, 0))

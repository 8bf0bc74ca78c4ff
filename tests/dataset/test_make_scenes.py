"""The scene generator's command line: Flickr30k's layout, deterministic."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from dataset.make_scenes import main
from minigpt4.common.types import Record
from minigpt4.datasets.readers.tables import JsonlReader
from minigpt4.scenes.truth import box_sides, load_scenes, names_all


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


def test_questions_are_a_file_a_task_and_leave_everything_else_as_it_is(tmp_path: Path) -> None:
    plain, folder = make(tmp_path / "plain"), make(tmp_path / "asked", extra=("--questions",))
    names = {p.relative_to(plain) for p in plain.rglob("*") if p.is_file()}
    assert all((plain / name).read_bytes() == (folder / name).read_bytes() for name in names)
    written = {p.name for p in (folder / "questions").iterdir()}
    assert written == {f"{task}.jsonl" for task in ("caption", "vqa", "refer", "identify", "detection")}
    truth = load_scenes(folder / "scenes.json")
    for name in written:
        records = list(JsonlReader().read(folder / "questions" / name))
        assert all(isinstance(record, Record) for record in records), records
        assert {record.split for record in records} == {"train", "val", "test"}
        assert len({record.image_id for record in records}) == len(records)
        if name in ("refer.jsonl", "identify.jsonl"):
            rows = map(json.loads, (folder / "questions" / name).read_text().splitlines())
            boxes = [(row["image"], box["box"]) for row in rows for box in row["boxes"]]
            true = [(image, box_sides(o.box)) for image, scene in truth.items() for o in scene.objects if o.box]
            assert sorted(boxes) == sorted(true)


def test_a_part_numbered_from_where_another_ends_is_the_rest_of_the_whole(tmp_path: Path) -> None:
    whole, rest = make(tmp_path / "whole"), tmp_path / "rest"
    assert main(["--out", str(rest), "--train", "0", "--val", "0", "--test", "10", "--first", "35"]) == 0
    assert read_rows(rest) == read_rows(whole)[35:]
    names = sorted(path.name for path in (rest / "images").iterdir())
    assert names == [f"scene_{number:06d}.png" for number in range(35, 45)]
    assert all((rest / "images" / name).read_bytes() == (whole / "images" / name).read_bytes() for name in names)


def test_images_have_the_size_asked_for(tmp_path: Path) -> None:
    folder = make(tmp_path / "big", extra=("--size", "96"))
    with Image.open(folder / "images" / "scene_000000.png") as image:
        assert image.size == (96, 96)


def test_bad_arguments_give_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path), "--size", "4"]) == 2
    assert main(["--out", str(tmp_path), "--train", "-1"]) == 2
    assert main(["--out", str(tmp_path), "--first", "-1"]) == 2
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert main(["--out", str(blocked / "sub"), "--train", "1"]) == 2
    assert capsys.readouterr().err.count("error: ") == 4

"""Detection and tables as text, from plain annotations to what the parsers of evaluation read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from minigpt4.common.config import load_config
from minigpt4.common.errors import DataError
from minigpt4.common.files import PROJECT
from minigpt4.common.types import Record
from minigpt4.datasets.builders import build_datasets
from minigpt4.datasets.readers import CocoBoxesReader, RowProblem, TableTriplesReader
from minigpt4.datasets.readers.coco_boxes import boxes_text
from minigpt4.datasets.readers.table_triples import triples_text
from minigpt4.evaluation.structured import parse_boxes, parse_triples
from minigpt4.models.loading import build_prompt_encoder

CATEGORIES = [{"id": 1, "name": "person"}, {"id": 2, "name": "dog"}]


def coco(path: Path, annotations: list[dict[str, Any]], **image: Any) -> list[Record | RowProblem]:
    images = [{"id": 7, "file_name": "a.jpg", "width": 200, "height": 100} | image]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES}))
    return list(CocoBoxesReader().read(path))


def box(category: int, *bbox: Any) -> dict[str, Any]:
    return {"image_id": 7, "category_id": category, "bbox": list(bbox)}


def test_pixels_become_shares(tmp_path: Path) -> None:
    path = tmp_path / "i.json"
    rows = [box(1, 150, 0, 70, 50), box(2, 20, 10, 60, 80), box(1, 0, 25, 50, 75)]
    (record,) = coco(path, rows)
    assert isinstance(record, Record)
    assert (record.image_id, record.image, record.source) == ("7", "a.jpg", f"{path}, image 1")
    assert record.answers == (
        '{"dog1": [0.100, 0.100, 0.400, 0.900], "person1": [0.000, 0.250, 0.250, 1.000], '
        '"person2": [0.750, 0.000, 1.000, 0.500]}',  # what lay beyond the right edge is cut off
    )
    assert coco(path, rows[::-1]) == [record]
    assert parse_boxes(record.answers[0]).items[0] == ("dog1", (0.1, 0.1, 0.4, 0.9))


def test_a_picture_without_objects_has_an_answer(tmp_path: Path) -> None:
    (record,) = coco(tmp_path / "i.json", [])
    assert isinstance(record, Record) and record.answers == ("{}",)


@pytest.mark.parametrize(
    ("annotations", "image", "message"),
    [
        ([box(3, 0, 0, 9, 9)], {}, "image 1: annotation 1: no category has the id 3"),
        ([box(1, 0, 0, 9)], {}, "image 1: annotation 1: 'bbox' should be"),
        ([box(1, 0, 0, 9, 0)], {}, "'bbox' should be"),
        ([box(1, 0, 0, 9, float("inf"))], {}, "'bbox' should be"),
        ([box(1, 300, 0, 9, 9)], {}, "lies outside of the picture, 200 x 100"),
        ([], {"width": 0}, "'width' and 'height' should be pixels above 0"),
        ([], {"file_name": ""}, "image 1: no 'file_name'"),
        ([box(1, 0, 0, 9, 9) | {"image_id": 8}], {}, "annotation 1: there is no image with the id 8"),
    ],
)
def test_bad_boxes_are_named(
    annotations: list[dict[str, Any]], image: dict[str, Any], message: str, tmp_path: Path
) -> None:
    problems = [row for row in coco(tmp_path / "i.json", annotations, **image) if isinstance(row, RowProblem)]
    assert len(problems) == 1 and message in str(problems[0])


@pytest.mark.parametrize("content", ["[]", "{", '{"images": [], "annotations": []}', '{"images": [1]}'])
def test_another_form_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "i.json").write_text(content)
    with pytest.raises(DataError, match=r"i\.json"):
        list(CocoBoxesReader().read(tmp_path / "i.json"))


def test_names_are_quoted() -> None:
    assert parse_boxes(boxes_text([('a "b"', (0, 0, 1, 1))], 2, 2)).items == (('a "b"1', (0, 0, 0.5, 0.5)),)


def save_table(folder: Path, name: str, text: str | None) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), "white").save(folder / f"{name}.png")
    if text is not None:
        (folder / f"{name}.csv").write_text(text, encoding="utf-8")


def test_tables_become_triples(tmp_path: Path) -> None:
    save_table(tmp_path, "train/a", 'name,age,"height, m"\nAnn,31,\n\n"Bob ""B""",7,1.2\n')
    (record,) = TableTriplesReader().read(tmp_path)
    assert isinstance(record, Record)
    assert (record.image_id, record.image, record.split) == ("train/a", "train/a.png", "train")
    triples = (("Ann", "age", "31"), ('Bob "B"', "age", "7"), ('Bob "B"', "height, m", "1.2"))
    assert parse_triples(record.answers[0]).items == triples


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no table; write it into a.csv"),
        ("", "no value"),
        ("name,age\n", "no value"),
        ("name,age\nAnn\n", "row 2 has 1 cells, the header 2"),
        ("name,age\n,31\n", "row 2 has no name"),
        ('name,age\n"Ann,31\n', "broken CSV"),
    ],
)
def test_bad_tables_are_named(text: str | None, message: str, tmp_path: Path) -> None:
    save_table(tmp_path, "a", text)
    (problem,) = TableTriplesReader().read(tmp_path)
    assert isinstance(problem, RowProblem) and message in str(problem) and "a.csv" in str(problem)


def test_triples_of_a_table_in_memory() -> None:
    assert triples_text([["", "x"], ["r", " 1  2 "]]) == '[["r", "x", "1 2"]]'


def test_the_joint_recipe_trains_on_all_by_ratio(tmp_path: Path) -> None:
    """The shipped YAML on small data, with the tiny model's tokenizer."""
    from tests.runners.test_stages import write_stage2

    write_stage2(tmp_path)
    (tmp_path / "detection" / "images").mkdir(parents=True)
    Image.new("RGB", (200, 100)).save(tmp_path / "detection" / "images" / "a.jpg")
    coco(tmp_path / "detection" / "instances.json", [box(2, 0, 0, 100, 100)])
    save_table(tmp_path / "tables", "t", "name,age\nAnn,31\n")
    options = ["model.model_type=tiny", f"paths.data_root={tmp_path}", "run.seed=1"]
    options += [f"datasets.{name}.val_fraction=0" for name in ("detection", "tables")]
    cfg = load_config(PROJECT / "train_configs" / "minigpt4_tasks_joint.yaml", options).config
    assert {name: dataset.sample_ratio for name, dataset in cfg.datasets.items()} == {
        "cc_sbu_align": 2,
        "detection": 3,
        "tables": 1,
    }
    datasets = build_datasets(
        cfg.datasets, cfg.model, build_prompt_encoder(cfg.model), ["train"], seed=cfg.run.seed, train=True
    )
    assert datasets["detection"][0].answer == '{"dog1": [0.000, 0.000, 0.500, 1.000]}'
    assert datasets["detection"][0].instruction.startswith("<Img><ImageHere></Img> List every object")
    assert datasets["tables"][0].answer == '[["Ann", "age", "31"]]'
    assert "List every value of this table" in datasets["tables"][0].instruction

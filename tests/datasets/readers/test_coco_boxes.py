from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minigpt4.common.errors import DataError
from minigpt4.common.types import Record
from minigpt4.datasets.readers.coco_boxes import boxes_text
from minigpt4.datasets.readers.rows import RowProblem
from minigpt4.evaluation.structured import parse_boxes
from tests.datasets.readers.conftest import box, read, write_coco


def read_coco(path: Path, annotations: list[dict[str, Any]], **image: Any) -> list[Record | RowProblem]:
    return read("coco_boxes", write_coco(path, annotations, **image))


def test_pixels_become_fractions(tmp_path: Path) -> None:
    path = tmp_path / "i.json"
    rows = [box(1, 150, 0, 70, 50), box(2, 20, 10, 60, 80), box(1, 0, 25, 50, 75)]
    (record,) = read_coco(path, rows)
    assert isinstance(record, Record)
    assert (record.image_id, record.image, record.source) == ("7", "a.jpg", f"{path}, image 1")
    assert record.answers == (
        '{"dog1": [0.100, 0.100, 0.400, 0.900], "person1": [0.000, 0.250, 0.250, 1.000], '
        '"person2": [0.750, 0.000, 1.000, 0.500]}',  # what lay beyond the right edge is cut off
    )
    assert read_coco(path, rows[::-1]) == [record]
    assert parse_boxes(record.answers[0]).items[0] == ("dog1", (0.1, 0.1, 0.4, 0.9))


def test_an_image_without_objects_has_an_answer(tmp_path: Path) -> None:
    (record,) = read_coco(tmp_path / "i.json", [])
    assert isinstance(record, Record) and record.answers == ("{}",)


@pytest.mark.parametrize(
    ("annotations", "image", "message"),
    [
        ([box(3, 0, 0, 9, 9)], {}, "image 1: annotation 1: no category has the id 3"),
        ([box(1, 0, 0, 9)], {}, "image 1: annotation 1: 'bbox' should be"),
        ([box(1, 0, 0, 9, 0)], {}, "'bbox' should be"),
        ([box(1, 0, 0, 9, float("inf"))], {}, "'bbox' should be"),
        ([box(1, 300, 0, 9, 9)], {}, "lies outside the image, 200 x 100"),
        ([], {"width": 0}, "'width' and 'height' should be pixels above 0"),
        ([], {"file_name": ""}, "image 1: no 'file_name'"),
        ([], {"width": 10**400}, "'width' and 'height' should be pixels above 0"),
        ([], {"height": float("nan")}, "'width' and 'height' should be pixels above 0"),
        ([], {"height": "100"}, "'width' and 'height' should be pixels above 0"),
        ([], {"id": ["a"]}, "image 1: 'id' should be a text"),
        ([box(1, 0, 0, 9, float("nan"))], {}, "'bbox' should be"),
        ([box(1, 0, 0, 9, 10**400)], {}, "'bbox' should be"),
        ([box(1, "0", 0, 9, 9)], {}, "'bbox' should be"),
        ([box(1, 0, 0, 9, 9) | {"category_id": [1]}], {}, "no category has the id [1]"),
        ([box(1, 0, 0, 9, 9) | {"image_id": 8}], {}, "annotation 1: there is no image with the id 8"),
    ],
)
def test_bad_boxes_are_named(
    annotations: list[dict[str, Any]], image: dict[str, Any], message: str, tmp_path: Path
) -> None:
    problems = [row for row in read_coco(tmp_path / "i.json", annotations, **image) if isinstance(row, RowProblem)]
    assert len(problems) == 1 and message in str(problems[0])


def test_absurd_widths_are_cut_off(tmp_path: Path) -> None:
    (record,) = read_coco(tmp_path / "i.json", [box(1, 1e308, 0, 1e308, 1e308)], width=1.5e308)
    assert isinstance(record, Record) and record.answers == ('{"person1": [0.667, 0.000, 1.000, 1.000]}',)


@pytest.mark.parametrize("image_id", [[1], {"a": 1}, 8, None])
def test_boxes_of_no_image_are_named(image_id: Any, tmp_path: Path) -> None:
    _, problem = read_coco(tmp_path / "i.json", [box(1, 0, 0, 9, 9) | {"image_id": image_id}])
    assert isinstance(problem, RowProblem) and "there is no image with the id" in problem.message


def test_two_images_of_one_id_are_named(tmp_path: Path) -> None:
    """The second would have no boxes."""
    path = write_coco(tmp_path / "i.json", [box(1, 0, 0, 9, 9)])
    content = json.loads(path.read_text())
    content["images"] *= 2
    path.write_text(json.dumps(content))
    first, second = read("coco_boxes", path)
    assert isinstance(first, Record)
    assert isinstance(second, RowProblem) and "the id 7 is already that of image 1" in second.message


@pytest.mark.parametrize("content", ["[]", "{", '{"images": [], "annotations": []}', '{"images": [1]}'])
def test_another_form_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "i.json").write_text(content)
    with pytest.raises(DataError, match=r"i\.json"):
        read("coco_boxes", tmp_path / "i.json")


def test_names_are_quoted() -> None:
    assert parse_boxes(boxes_text([('a "b"', (0, 0, 1, 1))], 2, 2)).items == (('a "b"1', (0, 0, 0.5, 0.5)),)

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minigpt4.common.errors import DataError
from minigpt4.common.types import Record
from minigpt4.datasets.readers.rows import RowProblem
from tests.datasets.readers.conftest import read


def read_content(path: Path, content: Any) -> list[Record | RowProblem]:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read("cc_sbu_align", path)


def test_the_published_form(tmp_path: Path) -> None:
    path = tmp_path / "filter_cap.json"
    rows = [{"image_id": "2", "caption": "A mat.\nIt is red."}, {"image_id": 3, "caption": "A cat."}]
    assert read_content(path, {"annotations": rows}) == [
        Record(image_id="2", images=("2.jpg",), answers=("A mat.\nIt is red.",), source=f"{path}, annotation 1"),
        Record(image_id="3", images=("3.jpg",), answers=("A cat.",), source=f"{path}, annotation 2"),
    ]


def test_bad_annotations_are_named(tmp_path: Path) -> None:
    rows = [{"caption": "x"}, {"image_id": "2", "caption": " "}, 5, {"image_id": "2", "caption": ["x"]}]
    problems = [str(row) for row in read_content(tmp_path / "f.json", {"annotations": rows})]
    expected = ["no 'image_id'", "no 'caption'", "an object is expected, found int", "'caption' should be a text"]
    for number, (problem, message) in enumerate(zip(problems, expected, strict=True), 1):
        assert problem.startswith(f"{tmp_path}/f.json, annotation {number}: {message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "line 1: broken JSON"), ("[]", '{"annotations": '), ({"annotations": {}}, '{"annotations": ')],
)
def test_another_form_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=r"f\.json") as caught:
        read_content(tmp_path / "f.json", content)
    assert message in str(caught.value)

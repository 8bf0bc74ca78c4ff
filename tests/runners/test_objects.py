"""The objects of images from every layout, and who names them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minigpt4.common.errors import DataError, MetricError
from minigpt4.runners.objects import read_objects

COCO = {
    "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
    "annotations": [{"image_id": 1, "category_id": 18}, {"image_id": 1, "category_id": 18}],
    "categories": [{"id": 18, "name": "dog"}],
}
ROWS = [{"image": "in/a.jpg", "boxes": [{"label": "dog"}]}, {"image": "in/a.jpg", "boxes": [{"label": " wren"}]}]
SCENES = {
    "a.png": {
        "background": "grey",
        "objects": [{"size": "large", "colour": "red", "shape": "circle", "position": "top left"}],
    }
}


def written(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    lines = "".join(json.dumps(row) + "\n" for row in content) if name.endswith(".jsonl") else json.dumps(content)
    path.write_text(lines)
    return path


def test_every_layout(tmp_path: Path) -> None:
    coco = read_objects(written(tmp_path, "coco.json", COCO))
    assert coco.of("val2014/a.jpg") == {"dog"} and coco.of("b.jpg") == frozenset()
    assert coco.mentions("Two puppies") == ["dog"]
    for name in ("rows.jsonl", "rows.json"):
        rows = read_objects(written(tmp_path, name, ROWS))
        assert rows.of("in/a.jpg") == {"dog", "wren"} and rows.mentions("wrens") == ["wren"]
    separated = json.dumps(ROWS[0] | {"caption": "a\u2028b"}, ensure_ascii=False)
    (tmp_path / "rows.jsonl").write_text(separated + "\n\n", encoding="utf-8")
    assert read_objects(tmp_path / "rows.jsonl").of("in/a.jpg") == {"dog"}
    scenes = read_objects(written(tmp_path, "scenes.json", SCENES))
    assert scenes.of("a.png") == {"red circle"}
    captions = {"1": "A scarlet disc and a blue star."}
    assert scenes.chair(captions, {"1": "a.png"}) == {"CHAIR_i": 0.5, "CHAIR_s": 1, "object_recall": 1}
    with pytest.raises(MetricError, match=r"scenes.json does not have the image b.png: did you mean 'a.png'"):
        scenes.of("b.png")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", [ROWS[0], {"image": "a.jpg", "boxes": [[0, 0, 1, 1]]}], "a.jsonl, line 2: no objects can be read"),
        ("a.jsonl", [], "names no image"),
        ("a.jsonl", [{"image": "a.jpg", "boxes": [{"label": " "}]}], "a.jsonl, line 1: a label in 'boxes' is empty"),
        ("a.json", COCO | {"categories": [*COCO["categories"], {"id": 18, "name": "cat"}]}, 'the id "18" comes twice'),
        ("a.json", [{"image": "a.jpg"}], "a.json, entry 1: no objects can be read .*'boxes'"),
        ("a.json", COCO | {"annotations": [{"image_id": 1, "category_id": 2}]}, "a.json, annotation 1: .*2"),
        ("a.json", COCO | {"images": [{"id": 1}]}, "a.json: no objects can be read .*file_name"),
        ("a.json", {"a.png": {"objects": 3}}, "not a scene record"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_objects(written(tmp_path, name, content))


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"image": "a.jpg", "boxes": []}\n{"image"\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: broken JSON"):
        read_objects(tmp_path / "a.jsonl")

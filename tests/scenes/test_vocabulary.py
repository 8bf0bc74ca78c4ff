from __future__ import annotations

import json
from pathlib import Path

import pytest

from minigpt4.common.errors import DataError
from minigpt4.scenes.vocabulary import Scene, SceneObject, load_scenes

SCENE = Scene(
    "grey",
    (
        SceneObject("large", "red", "circle", "top", "left"),
        SceneObject("small", "blue", "star", "middle", "centre"),
    ),
)


def test_a_ground_truth_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json does not exist"):
        load_scenes(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DataError, match=r"bad\.json, line 1: broken JSON"):
        load_scenes(tmp_path / "bad.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(DataError, match="must map file names to scenes, found a list"):
        load_scenes(tmp_path / "list.json")


def test_scene_records_round_trip_and_are_checked(tmp_path: Path) -> None:
    assert Scene.from_json(SCENE.to_json()) == SCENE
    path = tmp_path / "scenes.json"
    path.write_text(json.dumps({"a.png": SCENE.to_json()}))
    assert load_scenes(path) == {"a.png": SCENE}
    with pytest.raises(DataError, match="not a scene record"):
        Scene.from_json({"objects": [{}], "background": "grey"})
    record = SCENE.to_json()
    record["objects"][0]["colour"] = "rad"
    with pytest.raises(DataError, match=r"unknown colour 'rad'.*'red'"):
        Scene.from_json(record)

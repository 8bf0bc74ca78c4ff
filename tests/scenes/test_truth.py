from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from minigpt4.common.boxes import Box
from minigpt4.common.errors import DataError, MetricError
from minigpt4.scenes.truth import (
    COLOURS,
    SHAPES,
    Scene,
    SceneObject,
    all_objects_accuracy,
    load_scenes,
    named_objects,
    names_all,
    names_largest,
    object_accuracy,
)

SCENE = Scene(
    "grey",
    (
        SceneObject("large", "red", "circle", "top", "left"),
        SceneObject("small", "blue", "star", "middle", "centre"),
    ),
)
EVERYTHING = ", ".join(f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES)


def test_a_ground_truth_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json does not exist"):
        load_scenes(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DataError, match=r"bad\.json, line 1: broken JSON"):
        load_scenes(tmp_path / "bad.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(DataError, match="must map file names to scenes, found a list"):
        load_scenes(tmp_path / "list.json")


def test_boxes_round_trip_and_are_checked() -> None:
    boxed = replace(SCENE, objects=(replace(SCENE.objects[0], box=Box(0.1, 0.25, 0.5, 1.0)), SCENE.objects[1]))
    assert boxed == SCENE
    again = Scene.from_json(boxed.to_json())
    assert [o.box for o in again.objects] == [Box(0.1, 0.25, 0.5, 1.0), None]
    for wrong in ([0.5, 0.25, 0.1, 1.0], [0.1, 0.2, 0.5, 1.5], [0.1, 0.2, 0.5], [0.1, 0.2, 0.5, float("nan")], 3):
        record = boxed.to_json()
        record["objects"][0]["box"] = wrong
        with pytest.raises(DataError, match=r"a box in a scene should be|not a scene record"):
            Scene.from_json(record)


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


@pytest.mark.parametrize(
    ("caption", "pairs"),
    [
        ("A large red circle above a tiny violet box.", [("red", "circle"), ("purple", "square")]),
        ("a ring in blue, in the top left corner", [("blue", "ring")]),
        ("A big HOOP painted Green", [("green", "ring")]),
        ("two small pink boxes and one star", [("pink", "square"), ("pink", "square")]),
        ("three white crosses", [("white", "cross")] * 3),
        ("red, blue and green; circles and stars", []),
        ("a reddish circle, a starry blue sky, a square", []),
        ("a red circle in blue", [("red", "circle")]),
        ("", []),
    ],
)
def test_named_objects(caption: str, pairs: list[tuple[str, str]]) -> None:
    assert named_objects(caption) == pairs


def test_largest_object() -> None:
    assert names_largest("a red disc and a green ring", SCENE)
    assert names_largest("a small red circle", SCENE)
    assert not names_largest("a blue star", SCENE)
    assert not names_largest("a blue circle and a red star", SCENE)
    assert not names_largest(EVERYTHING, SCENE)
    assert not names_largest("a red circle, a blue star and a green ring", SCENE)


def test_all_objects_is_a_multiset() -> None:
    assert names_all("a blue star below a scarlet circle", SCENE)
    assert not names_all("a red circle", SCENE)
    assert not names_all("a red circle, a blue star and a blue star", SCENE)
    twins = Scene("grey", (SCENE.objects[0], SceneObject("small", "red", "circle", "bottom", "left")))
    assert names_all("two red circles", twins)
    assert not names_all("a red circle", twins)


def test_empty_scene_wants_no_objects() -> None:
    empty = Scene("black", ())
    assert names_largest("An empty black background.", empty) and names_all("Nothing.", empty)
    assert not names_largest("a red circle", empty)


def test_accuracies_find_scenes_by_name_or_stem() -> None:
    scenes = {"scene_1.png": SCENE, "scene_2.png": SCENE, "scene_3.png": SCENE}
    predictions = {
        "scene_1.png": "a red circle and a blue star",
        "scene_2": "a red circle",
        "scene_3": EVERYTHING,
    }
    assert object_accuracy(predictions, scenes) == pytest.approx(2 / 3)
    assert all_objects_accuracy(predictions, scenes) == pytest.approx(1 / 3)


def test_predictions_without_a_scene_are_named() -> None:
    with pytest.raises(MetricError, match=r"scene_9.*did you mean 'scene_1.png'"):
        object_accuracy({"scene_9.png": "x"}, {"scene_1.png": SCENE})
    with pytest.raises(MetricError, match="no predictions"):
        object_accuracy({}, {"scene_1.png": SCENE})

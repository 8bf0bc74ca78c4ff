"""Labels of checkpoints, and predictions files: named, written, read back, refused and merged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minigpt4.common.errors import DataError, MetricError
from minigpt4.evaluation.predictions import (
    Prediction,
    checkpoint_labels,
    load_predictions,
    merge_shards,
    predictions_file,
    save_predictions,
)

LISTED = [
    Prediction("1", "a “dog”\u2028runs", "1.jpg", ("A dog.", "A cat"), {"prompt": "Describe.", "tokens": 4}),
    Prediction("2", ""),
]


def test_round_trip(tmp_path: Path) -> None:
    path = save_predictions(tmp_path / "new" / "p.json", LISTED, {"split": "test"})
    found = load_predictions(path)
    assert found.predictions == LISTED and found.protocol == {"split": "test"}
    assert found.captions() == {"1": "a “dog”\u2028runs", "2": ""}
    assert found.references() == {"1": ["A dog.", "A cat"], "2": []}
    assert [entry.name for entry in path.parent.iterdir()] == ["p.json"]


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = save_predictions(tmp_path / "p.json", LISTED, {})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_predictions(path, [Prediction("1", "a", extra={"tensor": object()})], {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_whatever_was_generated_is_written(tmp_path: Path) -> None:
    path = save_predictions(tmp_path / "p.json", [*LISTED, Prediction("1", "again")], {})
    assert [item["caption"] for item in json.loads(path.read_text())["predictions"]][-1] == "again"
    with pytest.raises(MetricError, match=r"come twice.*: 1"):
        load_predictions(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    for content, message in (
        ([], "not a predictions file"),
        ({"predictions": ["a"]}, "prediction 0 is not an object"),
        ({"predictions": [{"caption": "a"}]}, "prediction 0 has no 'image_id'"),
        ({"predictions": [{"image_id": 1, "caption": 2}]}, "caption is not text"),
        ({"predictions": [{"image_id": 1, "caption": "", "references": "a"}]}, "not a list of texts"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match=message):
            load_predictions(path)
    with pytest.raises(DataError, match=r"missing\.json does not exist"):
        load_predictions(tmp_path / "missing.json")
    with pytest.raises(DataError, match="cannot be read"):
        load_predictions(tmp_path)


def test_shards_are_merged() -> None:
    a, b, c = (Prediction(key, "x") for key in "abc")
    assert merge_shards([[a, c], [b]], order=["a", "b", "c"]) == [a, b, c]
    with pytest.raises(MetricError, match="come twice"):
        merge_shards([[a, c], [a]], order=["a", "c"])
    with pytest.raises(MetricError, match=r"2 of 3 images have none \(b, d\), 1 are not of this set \(c\)"):
        merge_shards([[a, c]], order=["a", "b", "d"])


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        (["stage_1.pth", "a/checkpoint_0.pth"], ["stage 1", "epoch 0"]),
        (["a/checkpoint_0.pth", "b/checkpoint_0.pth"], ["a epoch 0", "b epoch 0"]),
        (["a/x.pth", "b/a/x.pth"], ["a/x.pth", "b/a/x.pth"]),
        (["a b.pth", "a_b.pth"], ["a b.pth", "a_b.pth"]),
        (["checkpoint_4.pth", "checkpoint_4.safetensors"], ["checkpoint_4.pth", "checkpoint_4.safetensors"]),
        (["x.pth", "a/x.pth", "a/x.pt"], ["x.pth", "a/x.pth", "a/x.pt"]),
        (["x.pth", "a/x.pth"], ["x", "a x"]),
        (["epoch 4.pth", "run/checkpoint_4.pth"], ["epoch 4.pth", "checkpoint_4.pth"]),
        # The longer label of the first meets the third's.
        (
            ["a/checkpoint_0.pth", "b/checkpoint_0.pth", "a_epoch_0.pth"],
            ["a/checkpoint_0.pth", "b epoch 0", "a_epoch_0.pth"],
        ),
        (["模型.pth", "模板.pth"], ["模型", "模板"]),
        (["a\udc80.pth", "a\udc81.pth"], ["a\\udc80", "a\\udc81"]),
    ],
)
def test_labels_are_short_and_different(paths: list[str], labels: list[str]) -> None:
    assert checkpoint_labels(paths) == labels


def test_each_label_has_a_predictions_file_of_its_own() -> None:
    labels = [
        "epoch 0",
        "epoch-0",
        "epoch_0",
        "模型",
        "模板",
        "Best",
        "best",
        "a/b",
        "a b",
        "x" * 300,
        "模" * 100,
        "👍",
        "👎",
    ]
    files: list[str] = []
    for label in labels:
        files.append(predictions_file(label, files))
    assert files[:2] == ["predictions_epoch_0.json", "predictions_epoch-0.json"]
    assert files[3:6] == ["predictions_模型.json", "predictions_模板.json", "predictions_Best.json"]
    assert len({name.casefold() for name in files}) == len(labels)
    assert all(len(name.encode()) < 200 and "/" not in name for name in files)
    assert predictions_file("epoch_0", ["predictions_epoch_0.json"]) == files[2]

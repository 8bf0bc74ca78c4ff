"""A predictions file comes back as it was saved; shards make one whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minigpt4.common.errors import DataError, MetricError
from minigpt4.common.files import read_json, write_json
from minigpt4.evaluation.predictions import Prediction, load_predictions, merge_shards, save_predictions
from minigpt4.evaluation.protocol import Protocol, references_sha256

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
    with pytest.raises(MetricError, match=r"come twice.*: 1"):
        save_predictions(path, [*LISTED, Prediction("1", "again")], {})
    with pytest.raises(TypeError):
        save_predictions(path, [Prediction("1", "a", extra={"tensor": object()})], {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_not_a_predictions_file(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    for content, said in (
        ([], "not a predictions file"),
        ({"predictions": ["a"]}, "prediction 0 is not an object"),
        ({"predictions": [{"caption": "a"}]}, "prediction 0 has no image_id"),
        ({"predictions": [{"image_id": 1, "caption": 2}]}, "caption is not text"),
        ({"predictions": [{"image_id": 1, "caption": "", "references": "a"}]}, "not a list of texts"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match=said):
            load_predictions(path)
    with pytest.raises(DataError, match=r"missing\.json does not exist"):
        load_predictions(tmp_path / "missing.json")
    with pytest.raises(DataError, match="cannot be read"):
        load_predictions(tmp_path)


def test_shards_make_one_whole() -> None:
    a, b, c = (Prediction(key, "x") for key in "abc")
    assert merge_shards([[a, c], [b]]) == [a, c, b]
    assert merge_shards([[a, c], [b]], order=["a", "b", "c"]) == [a, b, c]
    with pytest.raises(MetricError, match="come twice"):
        merge_shards([[a, c], [a]])
    with pytest.raises(MetricError, match=r"1 of 3 images have none \(b\), 1 are not of this set \(c\)"):
        merge_shards([[a, c]], order=["a", "b", "a"])


def test_json_has_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {1: float("nan"), "b": [float("inf"), 0.5, "\ud800"]})
    assert read_json(tmp_path / "a.json") == {"1": None, "b": [None, 0.5, "?"]}


def test_the_hash_knows_the_references() -> None:
    base = references_sha256({"1": ["a", "b"], "2": ["c"]})
    assert references_sha256({2: ["c"], 1: ("a", "b")}) == base  # type: ignore[dict-item]
    assert references_sha256({"1": ["b", "a"], "2": ["c"]}) != base
    assert references_sha256({"1": ["a"], "2": ["b", "c"]}) != base


def test_protocol_in_words() -> None:
    protocol = Protocol.of(
        {"1": ["a", "b"], "2": ["c"]}, ["bleu"], dataset="flickr30k", split="test", selection={"limit": 2}
    )
    assert protocol.summary().startswith("flickr30k, split test (limit 2): 2 images, 1 to 2 references each")
    plain = protocol.to_dict()
    assert plain["references"] == 3 and plain["scorer"].startswith("pycocoevalcap")
    assert "prompt" not in plain and "generation" not in plain

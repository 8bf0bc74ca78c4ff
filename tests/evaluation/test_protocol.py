"""The protocol: what was scored, and how."""

from __future__ import annotations

import json

from minigpt4.evaluation.predictions import Protocol, references_sha256


def test_the_hash_depends_on_the_references() -> None:
    base = references_sha256({"1": ["a", "b"], "2": ["c"]})
    assert references_sha256({2: ["c"], 1: ("a", "b")}) == base  # type: ignore[dict-item]
    assert references_sha256({"1": ["b", "a"], "2": ["c"]}) != base
    assert references_sha256({"1": ["a"], "2": ["b", "c"]}) != base


def test_protocols_are_compared_as_read_from_json() -> None:
    protocol = Protocol.of(
        {"1": ["a"]}, ["bleu"], dataset="a", generation={"top_p": 1.0}, notes={"frozen_weights": {"llm": "1"}, "x": 1}
    )
    plain = json.loads(json.dumps(protocol.to_dict()))
    assert protocol.differences(plain) == []
    assert protocol.differences(plain | {"checkpoint": "a.pth", "notes": plain["notes"] | {"x": 2}}) == []
    changed = plain | {"split": "val", "generation": {"top_p": 0.9}, "notes": {"frozen_weights": {"llm": "2"}}}
    assert protocol.differences(changed) == [
        "split: was val, is None",
        "generation.top_p: was 0.9, is 1.0",
        "frozen_weights.llm: was 2, is 1",
    ]


def test_protocol_in_words() -> None:
    protocol = Protocol.of(
        {"1": ["a", "b"], "2": ["c"]}, ["bleu"], dataset="flickr30k", split="test", selection={"limit": 2}
    )
    assert protocol.summary().startswith("flickr30k, split test (limit 2): 2 images, 1 to 2 references each")
    assert Protocol.of({"1": ["a"]}, [], dataset="x").summary().startswith("x: 1 image, 1 reference each, ")
    plain = protocol.to_dict()
    assert plain["references"] == 3 and plain["scorer"].startswith("pycocoevalcap")
    assert "prompt" not in plain and "generation" not in plain

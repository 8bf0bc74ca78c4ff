"""The protocol: what was scored, and how."""

from __future__ import annotations

from minigpt4.evaluation.protocol import Protocol, references_sha256


def test_the_hash_depends_on_the_references() -> None:
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

"""Names of checkpoints and of their predictions files."""

from __future__ import annotations

import pytest

from minigpt4.evaluation.predictions import checkpoint_labels, predictions_file


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

"""The model card: where scores and licences come from, and what is said where nothing is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from minigpt4.common.config import load_config
from minigpt4.common.errors import ConfigError
from minigpt4.datasets.leaks import METADATA_KEY, ImageSet, TrainingRecord
from minigpt4.export.card import NO_LICENCE, find_scores, model_card
from minigpt4.export.model_folder import Written

WRITTEN = Written(
    image_id=9,
    dtype="float16",
    metadata={"prompt_template": "Q: {} A: ", "base.llama_model": "0123"},
    end="###",
    leaves_end=True,
    decoding={"num_beams": 5, "length_penalty": 1.0},
    licences=("LICENSE.txt",),
)


def metrics_of(checkpoint: Path) -> dict[str, Any]:
    return {
        "protocol": {"dataset": "flickr30k", "split": "test", "images": 7},
        "rows": [{"checkpoint": "epoch 0", "cider": 0.1}, {"checkpoint": "epoch 1", "cider": 0.25}],
        "checkpoints": {
            "epoch 0": {"path": str(checkpoint.with_name("checkpoint_0.pth"))},
            "epoch 1": {"path": str(checkpoint)},
        },
    }


def test_scores_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = tmp_path / "train" / "checkpoint_1.pth"
    checkpoint.parent.mkdir()
    (tmp_path / "metrics.json").write_text(json.dumps(metrics_of(checkpoint)))
    for path in (checkpoint, checkpoint.with_suffix(".safetensors")):
        scores = find_scores(path, None)
        assert scores is not None and (scores.row, scores.protocol["split"]) == ({"cider": 0.25}, "test")
    (tmp_path / "train" / "metrics.json").write_text('{"checkpoints": {"of": "another program"}, "rows": 3}')
    assert find_scores(checkpoint, None) == scores
    (tmp_path / "train" / "metrics.json").write_text('{"checkpoints": ["of another program"]}')
    assert find_scores(checkpoint, None) == scores
    other = checkpoint.with_name("checkpoint_2.pth")
    assert find_scores(other, None) is None
    with pytest.raises(ConfigError, match=r"--metrics: .* has no scores of .*checkpoint_2\.pth"):
        find_scores(other, tmp_path / "metrics.json")


def test_the_card_says_what_is_known(tmp_path: Path) -> None:
    cfg = load_config(None, ["model.model_type=vicuna0_7b"]).config.model
    checkpoint = tmp_path / "checkpoint_1.pth"
    (tmp_path / "metrics.json").write_text(json.dumps(metrics_of(checkpoint)))
    images = ImageSet(name="birds", splits=("train",), source="", folder="", count=1200, listed=None)
    record = TrainingRecord(sets=(images,), complete=False)
    trained = {METADATA_KEY: record.to_metadata(), "epoch": "3"}
    card = model_card(cfg, WRITTEN, trained, find_scores(checkpoint, None), None)
    assert yaml.safe_load(card.split("---")[1])["pipeline_tag"] == "image-text-to-text"
    for line in (
        "- trained on: birds (train: 1,200 images)",
        "- what the checkpoint that training started from was trained on is not recorded",
        "- epoch: 3",
        '- prompt_template: `"Q: {} A: "`',
        "| cider | 0.2500 |",
        '- dataset: `"flickr30k"`',
        "| language model | `vicuna-7b` | LLaMA's, for research only |",
        "| Q-Former | `blip2_pretrained_flant5xxl.pth` | BSD-3-Clause (BLIP-2) |",
    ):
        assert line in card.splitlines()
    assert "It loads in float16, the number format of its language model" in card
    assert "**Not verified**" in card and "`LICENSE.txt`" in card
    assert 'stop_strings=["###"], tokenizer=processor.tokenizer, num_beams=5, length_penalty=1.0)' in card


def test_the_card_says_what_is_not_known() -> None:
    cfg = load_config(None, ["model.model_type=vicuna0_7b", "model.llama_model=own/model"]).config.model
    card = model_card(cfg, replace(WRITTEN, leaves_end=False, licences=()), {}, None, [])
    assert "- trained on: not recorded in the checkpoint" in card
    assert "None were found beside the checkpoint." in card
    assert f"| language model | `model` | {NO_LICENCE} |" in card
    assert "stop_strings" not in card

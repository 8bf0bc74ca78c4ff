from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from minigpt4.common.errors import ConfigError, DataError
from minigpt4.common.schema import Config, ProcessorConfig, SplitProcessors
from minigpt4.conversation.encoding import PromptEncoder
from tests.datasets.conftest import build

MakeConfig = Callable[..., Config]


def test_splits_and_processors(make_config: MakeConfig, encoder: PromptEncoder) -> None:
    cfg = make_config()
    cfg.datasets["mine"].text_processor = SplitProcessors(
        train=ProcessorConfig(name="plain_text", prompt="T: "), eval=ProcessorConfig(name="plain_text", max_words=2)
    )
    train = build(cfg, encoder, "train")["mine"]
    valid = build(cfg, encoder, "val", train=False)["mine"]
    assert (len(train), len(valid)) == (16, 4)
    assert train[0].answer.startswith("T: row 0 caption ")
    assert valid[0].answer == "row 16"


def test_the_processors_size_wins_over_the_models(make_config: MakeConfig, encoder: PromptEncoder) -> None:
    cfg = make_config()
    cfg.datasets["mine"].vis_processor.train.image_size = 6
    assert build(cfg, encoder, "train")["mine"].open(0).shape == (3, 6, 6)


def test_no_split_asked_for_is_no_dataset(make_config: MakeConfig, encoder: PromptEncoder) -> None:
    assert build(make_config(), encoder) == {}


def test_a_datasets_own_prompts_win(make_config: MakeConfig, encoder: PromptEncoder, tmp_path: Path) -> None:
    cfg = make_config()
    (tmp_path / "own.txt").write_text("<Img><ImageHere></Img> Own.\n")
    cfg.datasets["mine"].prompts = str(tmp_path / "own.txt")
    assert build(cfg, encoder, "train")["mine"].prompts == ["<Img><ImageHere></Img> Own."]


class TestErrors:
    def test_a_split_that_does_not_exist(self, make_config: MakeConfig, encoder: PromptEncoder) -> None:
        for train in (True, False):
            with pytest.raises(ConfigError, match=r"datasets\.mine: there is no split 'test'.*train \(16\), val \(4\)"):
                build(make_config(), encoder, "test", train=train)

    def test_no_dataset(self, make_config: MakeConfig, encoder: PromptEncoder) -> None:
        with pytest.raises(ConfigError, match="datasets: none is configured"):
            build(replace(make_config(), datasets={}), encoder, "train")

    def test_unknown_names_suggest_the_nearest(self, make_config: MakeConfig, encoder: PromptEncoder) -> None:
        cfg = make_config()
        cfg.datasets["mine"].builder = "instructions"
        with pytest.raises(ConfigError, match="unknown dataset builder 'instructions'; did you mean 'instruction'"):
            build(cfg, encoder, "train")
        cfg = make_config()
        cfg.datasets["mine"].reader = "json"
        with pytest.raises(ConfigError, match="unknown annotation reader 'json'; did you mean 'jsonl'"):
            build(cfg, encoder, "train")

    def test_a_processor_of_another_kind(self, make_config: MakeConfig, encoder: PromptEncoder) -> None:
        cfg = make_config()
        cfg.datasets["mine"].text_processor.train.name = "blip2_image_train"
        with pytest.raises(ConfigError, match=r"datasets\.mine\.text_processor\.train\.name: 'blip2_image_train'"):
            build(cfg, encoder, "train")

    def test_prompts_without_placeholder_or_file(self, make_config: MakeConfig, encoder: PromptEncoder) -> None:
        cfg = make_config()
        Path(str(cfg.model.prompt_path)).write_text("Describe it.\n")
        with pytest.raises(DataError, match=r"prompts\.txt, line 1: 0 image placeholder"):
            build(cfg, encoder, "train")
        cfg.model.prompt_path = None
        with pytest.raises(ConfigError, match=r"datasets\.mine\.prompts is not set"):
            build(cfg, encoder, "train")


class TestSeveral:
    def test_training_needs_the_split_in_each(self, make_config: MakeConfig, encoder: PromptEncoder) -> None:
        cfg = make_config()
        cfg.datasets["other"] = make_config(4).datasets["mine"]  # all of its four rows are val
        assert list(build(cfg, encoder, "val")) == ["mine", "other"]
        with pytest.raises(ConfigError, match=r"datasets\.other: there is no split 'train'"):
            build(cfg, encoder, "train")

    def test_validation_leaves_out_those_without_it(
        self, make_config: MakeConfig, encoder: PromptEncoder, caplog: pytest.LogCaptureFixture
    ) -> None:
        cfg = make_config()
        cfg.datasets["other"] = make_config(4).datasets["mine"]
        with caplog.at_level(logging.WARNING):
            assert list(build(cfg, encoder, "train", train=False)) == ["mine"]
        assert "left out of validation: datasets.other" in caplog.text

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from minigpt4.common.errors import ConfigError, DataError, MissingSplitError
from minigpt4.common.schema import Config, DatasetConfig, ProcessorConfig, SplitProcessors
from minigpt4.conversation.template import PromptEncoder
from minigpt4.datasets.builders import images_folder, load_records, select_splits
from tests.datasets.conftest import build, write_jsonl

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
    assert build(cfg, encoder, "train")["mine"].open_image(0).shape == (3, 6, 6)


def test_no_split_asked_for_is_no_dataset(make_config: MakeConfig, encoder: PromptEncoder) -> None:
    assert build(make_config(), encoder) == {}


def test_a_datasets_own_prompts_win(make_config: MakeConfig, encoder: PromptEncoder, tmp_path: Path) -> None:
    cfg = make_config()
    (tmp_path / "own.txt").write_text("<Img><ImageHere></Img> Own.\n")
    cfg.datasets["mine"].prompts = str(tmp_path / "own.txt")
    assert build(cfg, encoder, "train")["mine"].prompts == ["<Img><ImageHere></Img> Own."]


def test_texts_that_utf8_cannot_encode_become_samples(
    make_config: MakeConfig, encoder: PromptEncoder, tmp_path: Path
) -> None:
    cfg = make_config()
    row = {"image": "0.png", "id": "\ud800", "answer": "a \ud800 dog", "question": "\udfff what?"}
    cfg.datasets["mine"].annotations = str(write_jsonl(tmp_path / "odd.jsonl", [row, row | {"image": "\ud800.png"}]))
    dataset = build(cfg, encoder, "train")["mine"]
    for index in range(2):  # the second image does not exist, and is replaced
        sample = dataset.sample(index, epoch=0)
        assert (sample.image_id, sample.answer) == ("\ufffd", "a \ufffd dog")
        assert sample.instruction.endswith("\ufffd what?")
    assert dataset.identity().startswith("2 records, ")


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


def jsonl_config(tmp_path: Path, rows: int, **options) -> DatasetConfig:
    content = [{"image": f"{number}.jpg", "answer": "x"} for number in range(rows)]
    return DatasetConfig(reader="jsonl", annotations=str(write_jsonl(tmp_path / "a.jsonl", content)), **options)


class TestRecords:
    def test_rows_without_a_split_are_for_training(self, tmp_path: Path) -> None:
        assert {record.split for record in load_records("mine", jsonl_config(tmp_path, 50))} == {"train"}

    def test_val_fraction_is_a_fixed_share_of_names(self, tmp_path: Path) -> None:
        few = load_records("mine", jsonl_config(tmp_path, 500, val_fraction=0.2))
        many = load_records("mine", jsonl_config(tmp_path, 1000, val_fraction=0.2))
        assert many[:500] == few  # adding rows moves no image
        share = sum(record.split == "val" for record in many) / 1000
        assert 0.16 < share < 0.24

    def test_a_split_of_its_own_stays(self, tmp_path: Path) -> None:
        path = write_jsonl(tmp_path / "a.jsonl", [{"image": "1.jpg", "answer": "x", "split": "test"}] * 5)
        cfg = DatasetConfig(reader="jsonl", annotations=str(path), val_fraction=0.99)
        assert {record.split for record in load_records("mine", cfg)} == {"test"}

    def test_loading_raises_on_the_first_bad_row_and_counts_the_others(self, tmp_path: Path) -> None:
        rows = [{"image": "1.jpg", "answer": "x"}, {"image": "2.jpg"}, {"image": "3.jpg"}, {"image": "4.jpg"}]
        cfg = DatasetConfig(reader="jsonl", annotations=str(write_jsonl(tmp_path / "a.jsonl", rows)))
        with pytest.raises(DataError, match=r"a\.jsonl, line 2: no 'answer'.*\(and 2 more rows\)"):
            load_records("mine", cfg)

    def test_no_row_at_all_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="holds no record"):
            load_records("mine", jsonl_config(tmp_path, 0))

    def test_a_missing_split_names_those_that_exist(self, tmp_path: Path) -> None:
        records = load_records("mine", jsonl_config(tmp_path, 3))
        with pytest.raises(MissingSplitError, match=r"no split 'val'; the annotations have train \(3\).*val_fraction"):
            select_splits("mine", records, ["train", "val"])

    def test_splits_can_be_joined_in_the_order_of_the_annotations(self, tmp_path: Path) -> None:
        records = load_records("mine", jsonl_config(tmp_path, 100, val_fraction=0.5))
        assert select_splits("mine", records, ["val", "train"]) == records
        assert 0 < len(select_splits("mine", records, ["val"])) < 100

    def test_missing_paths_name_key_and_variable(self, tmp_path: Path) -> None:
        cfg = DatasetConfig(reader="jsonl", annotations="no.jsonl")
        with pytest.raises(ConfigError, match=r"datasets\.mine\.annotations: no\.jsonl does not exist.*MINIGPT4_DATA"):
            load_records("mine", cfg)
        with pytest.raises(ConfigError, match=r"datasets\.mine\.images: nowhere does not exist.*MINIGPT4_DATA"):
            images_folder("mine", jsonl_config(tmp_path, 1, images="nowhere"))

    def test_images_lie_beside_the_annotations_unless_told(self, tmp_path: Path) -> None:
        assert images_folder("mine", jsonl_config(tmp_path, 1)) == tmp_path
        folder = DatasetConfig(reader="folder", images=str(tmp_path))  # either key will do for a folder
        assert images_folder("mine", folder) == tmp_path
        folder = DatasetConfig(reader="folder", annotations=str(tmp_path))
        assert images_folder("mine", folder) == tmp_path

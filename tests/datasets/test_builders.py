from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minigpt4.common.errors import ConfigError, DataError, MissingSplitError
from minigpt4.common.schema import BadData, Config, DatasetConfig, ProcessorConfig, SplitProcessors, check_values
from minigpt4.conversation.template import PromptEncoder
from minigpt4.datasets import builders
from minigpt4.datasets.builders import (
    images_folder,
    load_records,
    quick_missing_splits,
    require_evaluated_splits,
    require_training_splits,
    select_splits,
)
from minigpt4.datasets.instruction import InstructionDataset
from tests.datasets.conftest import SIDE, build, write_jsonl

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


@pytest.mark.parametrize("size", [6, 2**53])
def test_images_of_another_size_than_the_models_are_refused(
    make_config: MakeConfig, encoder: PromptEncoder, size: int
) -> None:
    cfg = make_config()
    cfg.datasets["mine"].vis_processor.train.image_size = cfg.model.image_size
    assert build(cfg, encoder, "train")["mine"].open_image(0).shape == (3, SIDE, SIDE)
    cfg.datasets["mine"].vis_processor.train.image_size = size
    with pytest.raises(ConfigError, match=rf"datasets\.mine\.vis_processor\.train\.image_size: {size}, but the model"):
        build(cfg, encoder, "train")


def test_no_split_asked_for_is_no_dataset(make_config: MakeConfig, encoder: PromptEncoder) -> None:
    assert build(make_config(), encoder) == {}


def test_a_datasets_own_prompts_win(make_config: MakeConfig, encoder: PromptEncoder, tmp_path: Path) -> None:
    cfg = make_config()
    (tmp_path / "own.txt").write_text("<Img><ImageHere></Img> Own.\n")
    cfg.datasets["mine"].prompts = str(tmp_path / "own.txt")
    assert build(cfg, encoder, "train")["mine"].prompts == ["<Img><ImageHere></Img> Own."]


class TestPromptsAroundQuestions:
    rows = ({"image": "0.png", "question": "Who?", "answer": "x"}, {"image": "1.png", "answer": "y"})

    def dataset(
        self, make_config: MakeConfig, encoder: PromptEncoder, tmp_path: Path, prompts: str, rows: Sequence[Any] = rows
    ) -> InstructionDataset:
        cfg = make_config()
        (tmp_path / "own.txt").write_text(prompts)
        cfg.datasets["mine"].prompts = str(tmp_path / "own.txt")
        cfg.datasets["mine"].annotations = str(write_jsonl(tmp_path / "asked.jsonl", rows))
        return build(cfg, encoder, "train")["mine"]

    def test_each_kind_of_prompt_is_for_its_kind_of_row(
        self, make_config: MakeConfig, encoder: PromptEncoder, tmp_path: Path
    ) -> None:
        pool = "[vqa] {question}\n[vqa] {question} Be brief.\n<Img><ImageHere></Img> [caption]\n"
        dataset = self.dataset(make_config, encoder, tmp_path, pool)
        asked = [{dataset.sample(index, epoch).instruction for epoch in range(20)} for index in range(2)]
        tag = "<Img><ImageHere></Img> [vqa] "
        assert asked == [{f"{tag}Who?", f"{tag}Who? Be brief."}, {"<Img><ImageHere></Img> [caption]"}]

    def test_a_conversation_stays_as_it_is_written(
        self, make_config: MakeConfig, encoder: PromptEncoder, tmp_path: Path
    ) -> None:
        turns = [{"question": "Who?", "answer": "x"}, {"question": "Why?", "answer": "y"}]
        rows = [{"image": "0.png", "conversation": turns}]
        dataset = self.dataset(make_config, encoder, tmp_path, "[vqa] {question}\n", rows)
        assert [question for question, _ in dataset._turns(0, 0)] == ["<Img><ImageHere></Img> Who?", "Why?"]

    def test_the_place_of_the_image_may_be_in_either(
        self, make_config: MakeConfig, encoder: PromptEncoder, tmp_path: Path
    ) -> None:
        rows = [self.rows[0], self.rows[0] | {"question": "Is <Img><ImageHere></Img> it?"}]
        dataset = self.dataset(make_config, encoder, tmp_path, "[vqa] <Img><ImageHere></Img> {question}\n", rows)
        assert dataset.sample(0, 0).instruction == "[vqa] <Img><ImageHere></Img> Who?"
        with pytest.raises(DataError, match=r"asked\.jsonl, line 2: 2 image placeholder\(s\) for 1 image"):
            dataset.sample(1, 0)

    def test_a_row_that_no_prompt_asks_about_is_named_when_it_is_read(
        self, make_config: MakeConfig, encoder: PromptEncoder, tmp_path: Path
    ) -> None:
        with pytest.raises(DataError, match=r"asked\.jsonl, line 2: there is no question, but all prompts"):
            self.dataset(make_config, encoder, tmp_path, "[vqa] {question}\n")

    @pytest.mark.parametrize("prompt", ["{question} {question}", "<ImageHere> <ImageHere> {question}", "no image"])
    def test_a_prompt_that_fits_nothing(
        self, make_config: MakeConfig, encoder: PromptEncoder, tmp_path: Path, prompt: str
    ) -> None:
        with pytest.raises(DataError, match=r"own\.txt, line 1: "):
            self.dataset(make_config, encoder, tmp_path, prompt)


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
        assert many[:500] == list(few)  # adding rows moves no image
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

    def test_skipping_bad_rows_names_them(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        rows = [{"image": "1.jpg", "answer": "x"}, {"image": "2.jpg"}, *[{"answer": "y"}] * 30]
        path = write_jsonl(tmp_path / "a.jsonl", rows)
        cfg = DatasetConfig(reader="jsonl", annotations=str(path), bad_rows=BadData.skip)
        with caplog.at_level(logging.WARNING):
            assert [record.image for record in load_records("mine", cfg)] == ["1.jpg"]
        assert "dataset mine: left out: " in caplog.text and "a.jsonl, line 2: no 'answer'" in caplog.text
        assert caplog.text.count("left out: ") == 20 and "11 more rows cannot be used" in caplog.text
        write_jsonl(path, rows[1:])
        with pytest.raises(DataError, match=r"holds no record; the first row: .*a\.jsonl, line 1: no 'answer'"):
            load_records("mine", cfg)

    def test_several_files_are_one_dataset(self, tmp_path: Path) -> None:
        first = jsonl_config(tmp_path, 3)
        second = write_jsonl(tmp_path / "b.jsonl", [{"image": "b.jpg", "answer": "x", "split": "val"}])
        cfg = replace(first, annotations=[first.annotations, str(second)])
        records = load_records("mine", cfg)
        assert [record.image for record in records] == ["0.jpg", "1.jpg", "2.jpg", "b.jpg"]
        assert records[3].source == f"{second}, line 1" and records.splits() == {"train": 3, "val": 1}
        assert images_folder("mine", cfg) == tmp_path
        assert list(cfg.files("mine")) == [("datasets.mine.annotations", path) for path in cfg.annotations]

    @pytest.mark.parametrize("value", [7, ["a.json", 7], ["a.json", ""], ["a.json", "a.json"], {"a": 1}])
    def test_annotations_that_are_no_paths(self, value: Any) -> None:
        with pytest.raises(ConfigError, match=r"datasets\.mine\.annotations: .*(should be a path|names a file twice)"):
            check_values(DatasetConfig(reader="jsonl", annotations=value), "datasets.mine.")

    def test_the_split_and_the_names_of_images_may_be_the_cards(self, tmp_path: Path) -> None:
        cfg = jsonl_config(tmp_path, 2, split="test", image_name="train2014/COCO_{image}")
        assert {record.split for record in load_records("mine", cfg)} == {"test"}
        assert [record.image for record in load_records("mine", cfg)] == [f"train2014/COCO_{n}.jpg" for n in range(2)]
        assert [record.image_id for record in load_records("mine", cfg)] == ["0", "1"]
        for options, message in (
            ({"split": "val", "val_fraction": 0.1}, "split: val_fraction"),
            ({"image_name": "x"}, "'{image}'"),
        ):
            with pytest.raises(ConfigError, match=message):
                check_values(jsonl_config(tmp_path, 2, **options), "datasets.mine.")

    def test_records_that_are_too_long_are_named_before_training(
        self, make_config: MakeConfig, encoder: PromptEncoder, tmp_path: Path
    ) -> None:
        cfg, mine, encoder = make_config(), "mine", copy(encoder)
        encoder.max_txt_len = 20
        late = [{"question": "<ImageHere> a?", "answer": "b" * 30}, {"question": "<ImageHere>?", "answer": "c"}]
        rows = [
            {"image": "0.png", "question": "Why?" + "?" * (encoder.max_context_len // 8), "answer": "x" * 9000},
            {"image": "1.png", "question": "w" * encoder.max_context_len, "answer": "x"},
            {"images": ["0.png", "1.png"], "conversation": late},
        ]
        cfg.datasets[mine].annotations = str(write_jsonl(tmp_path / "long.jsonl", rows))
        with pytest.raises(DataError, match=r"long\.jsonl, line 2: the prompt has .* \(and 1 more row\); "):
            build(cfg, encoder, "train")
        cfg.datasets[mine].bad_rows = BadData.skip
        assert [record.image for record in build(cfg, encoder, "train")[mine].records] == ["0.png"]

    def test_no_row_at_all_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="holds no record"):
            load_records("mine", jsonl_config(tmp_path, 0))

    def test_a_missing_split_names_those_that_exist(self, tmp_path: Path) -> None:
        records = load_records("mine", jsonl_config(tmp_path, 3))
        with pytest.raises(MissingSplitError, match=r"no split 'val'; the annotations have train \(3\).*val_fraction"):
            select_splits("mine", records, ["train", "val"])

    def test_splits_can_be_joined_in_the_order_of_the_annotations(self, tmp_path: Path) -> None:
        records = load_records("mine", jsonl_config(tmp_path, 100, val_fraction=0.5))
        assert list(select_splits("mine", records, ["val", "train"])) == list(records)
        assert 0 < len(select_splits("mine", records, ["val"])) < 100

    def test_missing_splits_are_found_without_reading_more_than_is_needed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cfg, read = jsonl_config(tmp_path, 100, val_fraction=0.5), []
        rows = list(builders.read_rows("mine", cfg))
        monkeypatch.setattr(builders, "read_rows", lambda *_: (read.append(row) or row for row in rows))
        assert quick_missing_splits("mine", cfg, ["train", "val"]) == {}
        assert 2 <= len(read) < 20
        missing = quick_missing_splits("mine", cfg, ["val", "tst"])
        assert len(read) > 100 and list(missing) == ["tst"] and "(--split)" in str(missing["tst"])
        monkeypatch.setattr(builders, "QUICKLY_READ", 100)
        assert quick_missing_splits("mine", cfg, ["tst"]) == {}

    def test_every_dataset_needs_the_splits_trained_on_and_one_those_of_the_validation(self, tmp_path: Path) -> None:
        folders = [tmp_path / name for name in ("plain", "split")]
        for folder in folders:
            folder.mkdir()
        plain, split = jsonl_config(folders[0], 50), jsonl_config(folders[1], 50, val_fraction=0.5)
        require_training_splits({"plain": plain, "split": split}, ["train"], ["val"])
        with pytest.raises(MissingSplitError, match=r"datasets\.plain: there is no split 'val'"):
            require_training_splits({"split": split, "plain": plain}, ["train", "val"], [])
        with pytest.raises(MissingSplitError, match=r"datasets\.plain: there is no split 'val'"):
            require_training_splits({"plain": plain}, ["train"], ["val"])

    def test_an_evaluated_dataset_needs_one_of_the_splits_and_a_split_one_of_the_datasets(self) -> None:
        a, b = MissingSplitError("testA"), MissingSplitError("test")
        require_evaluated_splits({"refcoco": {"test": b}, "refcocog": {"testA": a}}, ["testA", "test"])
        for missing in ({"refcoco": {}, "refcocog": {"testA": a, "test": b}}, {"one": {"test": b}}):
            with pytest.raises(MissingSplitError):
                require_evaluated_splits(missing, ["testA", "test"])

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

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minigpt4.common.boxes import Box
from minigpt4.common.errors import DataError
from minigpt4.common.schema import Config, Target
from minigpt4.conversation.template import PromptEncoder
from minigpt4.datasets.instruction import MAX_SUBSTITUTES, InstructionDataset
from minigpt4.datasets.loaders import collate
from minigpt4.processors.image import open_image
from tests.datasets.conftest import SIDE, build, write_jsonl

MakeConfig = Callable[..., Config]


@pytest.fixture
def dataset(make_config: MakeConfig, encoder: PromptEncoder) -> InstructionDataset:
    return build(make_config(), encoder, "train")["mine"]


def test_a_sample_is_image_prompt_and_answer(dataset: InstructionDataset, encoder: PromptEncoder) -> None:
    sample = dataset.sample(3, epoch=0)
    assert sample.image_id == "id3"
    assert sample.answer.startswith("row 3 caption ")
    assert sample.instruction in dataset.prompts
    assert sample.encoded == encoder.encode_example(sample.instruction, sample.answer)
    assert len(sample.images) == 1 and torch.equal(sample.images[0], dataset.open_image(3))
    assert (sample.images[0].shape, sample.images[0].dtype) == ((3, SIDE, SIDE), torch.uint8)
    assert sample.skipped == ()


def test_the_registered_processor_is_what_runs(dataset: InstructionDataset) -> None:
    dataset.image_processor = lambda path: torch.full((3, SIDE, SIDE), float(open_image(path).width))
    opened = dataset.open_image(3)
    assert opened.dtype is torch.float32 and opened.unique().tolist() == [4.0]


def test_what_is_random_depends_on_seed_epoch_and_index_only(dataset: InstructionDataset) -> None:
    first = [dataset.sample(3, epoch).answer for epoch in range(30)]
    torch.manual_seed(0)
    assert [dataset.sample(3, epoch).answer for epoch in range(30)] == first
    assert set(first) == {f"row 3 caption {letter}" for letter in "xyz"}
    assert {dataset.sample(3, epoch).instruction for epoch in range(60)} == set(dataset.prompts)
    dataset.seed = 43
    assert [dataset.sample(3, epoch).answer for epoch in range(30)] != first


def test_validation_uses_the_same_sample_each_time(dataset: InstructionDataset) -> None:
    assert dataset[5].answer == dataset[5].answer == dataset.sample(5, epoch=0).answer


def test_the_joined_target(dataset: InstructionDataset) -> None:
    dataset.target = Target.joined
    assert dataset.sample(0, 0).answer == "row 0 caption x row 0 caption y row 0 caption z"


def test_the_answer_template_frames_the_processed_caption(dataset: InstructionDataset) -> None:
    dataset.answer = "{answer} {braces} is what I see"
    dataset.text_processor = str.upper
    assert dataset.sample(0, 0).answer.startswith("ROW 0 CAPTION ")
    assert dataset.sample(0, 0).answer.endswith(" {braces} is what I see")


def test_a_question_of_its_own_replaces_the_prompts(dataset: InstructionDataset) -> None:
    dataset.records = [replace(dataset.records[0], question="Which colour?")]
    assert dataset.sample(0, 0).instruction == "<Img><ImageHere></Img> Which colour?"


def test_a_prompt_that_does_not_fit_names_the_row(dataset: InstructionDataset) -> None:
    dataset.records = [replace(dataset.records[0], question="long " * 2000)]
    with pytest.raises(DataError, match=r"mine20\.jsonl, line 1: the prompt has"):
        dataset.sample(0, 0)


class TestBrokenImages:
    def test_another_sample_replaces_it_and_says_so(self, dataset: InstructionDataset) -> None:
        dataset.image_path(2).write_bytes(b"broken")
        sample = dataset.sample(2, epoch=0)
        assert sample.image_id != "id2"
        (message,) = sample.skipped
        assert "mine20.jsonl, line 3: image" in message and "2.png cannot be read" in message
        again = dataset.sample(2, epoch=0)
        assert (again.image_id, again.answer) == (sample.image_id, sample.answer)
        assert len({dataset.sample(2, epoch).image_id for epoch in range(8)}) > 1

    def test_the_substitute_is_complete(self, dataset: InstructionDataset) -> None:
        dataset.image_path(2).write_bytes(b"broken")
        sample = dataset.sample(2, epoch=1)
        index = int(sample.image_id.removeprefix("id"))
        assert torch.equal(sample.images[0], dataset.open_image(index))
        assert sample.answer.startswith(f"row {index} ")
        assert sample.answer == dataset.sample(index, epoch=1).answer

    def test_substitutes_that_are_broken_too_are_all_named(self, dataset: InstructionDataset) -> None:
        for index in range(8):
            dataset.image_path(index).unlink()
        counts = [len(dataset.sample(0, epoch).skipped) for epoch in range(8)]
        assert min(counts) >= 1 and max(counts) > 1

    def test_an_empty_folder_is_one_clear_error(self, dataset: InstructionDataset) -> None:
        for index in range(len(dataset)):
            dataset.image_path(index).unlink()
        expected = rf"dataset mine: {MAX_SUBSTITUTES} images in a row .*datasets\.mine\.images=DIR.*MINIGPT4_DATA"
        with pytest.raises(DataError, match=expected):
            dataset.sample(0, 0)

    def test_opening_one_names_row_and_image(self, dataset: InstructionDataset) -> None:
        dataset.image_path(4).unlink()
        with pytest.raises(DataError, match=r"mine20\.jsonl, line 5: image .*4\.png does not exist"):
            dataset.open_image(4)


def test_conversations_about_any_number_of_images(
    make_config: MakeConfig, encoder: PromptEncoder, tmp_path: Path
) -> None:
    turns = [{"question": "What?", "answer": "A dog."}, {"question": "And <Img><ImageHere></Img>?", "answer": "A cat."}]
    rows = [
        {"images": ["1.png", "2.png"], "id": "both", "conversation": turns},
        {"images": [], "id": "text", "question": "Name a fruit.", "answer": "Apple."},
        {"image": "3.png", "answer": "Grey."},
    ]
    cfg = make_config()
    turns[0]["question"] = "What is <Img><ImageHere></Img>?"
    cfg.datasets["mine"].annotations = str(write_jsonl(tmp_path / "talks.jsonl", rows))
    cfg.datasets["mine"].answer = "<{answer}>"
    dataset = build(cfg, encoder, "train")["mine"]
    both, text, one = (dataset.sample(index, 0) for index in range(3))
    assert [len(sample.images) for sample in (both, text, one)] == [2, 0, 1]
    assert torch.equal(both.images[1], dataset.open_image(0, 1)) and not torch.equal(*both.images)
    trained = [part for part, is_target in encoder.labelled_segments(both.encoded) if is_target]
    assert trained == ["<A dog.>#", "<A cat.>#"]
    batch = collate([both, text, one])
    assert batch.images is not None and len(batch.images) == 3
    assert len(batch.image_positions) == 3 * encoder.num_image_tokens
    assert batch.num_targets == sum(map(len, [*trained, "<Apple.>#", "<Grey.>#"]))
    assert dataset.text_length(0, 0) == sum(map(len, [turns[0]["question"], turns[1]["question"], "<A dog.><A cat.>"]))


def test_a_dataset_of_old_keeps_its_identity_and_turns_are_part_of_it(dataset: InstructionDataset) -> None:
    before = dataset.identity()
    assert before == "16 records, b05e4f174beb896c"
    original = dataset.records
    for change in ({"earlier": (("a", "b"),)}, {"images": ("0.png", "1.png")}):
        dataset.records = [replace(record, **change) for record in original]
        assert dataset.identity() != before
    only_evaluated = {"kind": "colour", "boxes": (Box(0, 0, 1, 1),), "choices": ("a", "b")}
    dataset.records = [replace(record, **only_evaluated) for record in original]
    assert dataset.identity() == before

"""Answers to questions: each about its own image, the control about another one, and the most likely choice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from minigpt4.common.errors import DataError
from minigpt4.common.schema import EvaluationConfig, GenerationConfig
from minigpt4.common.types import Record, Sample
from minigpt4.datasets.loaders import collate
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.tasks.answering import IMAGES_OF_A_GROUP, QUESTIONS_OF_A_GROUP, Answering
from tests.models.parity import Case

CONFIG = EvaluationConfig(num_workers=0, generation=GenerationConfig(max_new_tokens=4))


def question(key: str, *images: str, text: str = "What?", **more: Any) -> Record:
    return Record(image_id=key, images=images, answers=("x",), question=text, source=f"row {key}", **more)


def dataset(case: Case, records: Sequence[Record]) -> Any:
    def open_images(index: int) -> tuple[Tensor, ...]:
        if "broken" in records[index].images:
            raise DataError("broken cannot be read")
        return tuple(case.pixels[int(image)] for image in records[index].images)

    prompts = ["<Img><ImageHere></Img> Describe it."]
    return SimpleNamespace(records=records, prompts=prompts, open=open_images, answer_text=str)


def answering(case: Case, records: Sequence[Record], cfg: EvaluationConfig = CONFIG, **more: Any) -> Answering:
    data = dataset(case, records)
    return Answering(case.model, data, range(len(records)), cfg, references=lambda record: record.answers, **more)


Asked = list[tuple[list[int], Tensor]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """(prompt, queries of its images) of everything that is generated; the answer is their place in this list."""
    seen: Asked = []

    def generate(self: MiniGPT4, prompts: Sequence[list[int]], settings: Any, *, queries: Tensor | None) -> Any:
        width = self.encoder.num_image_tokens
        counts = [sum(token < 0 for token in prompt) // width for prompt in prompts]
        parts = torch.empty(0).split([0] * len(prompts)) if queries is None else queries.split(counts)
        answers = []
        for prompt, part in zip(prompts, parts, strict=True):
            answers.append(SimpleNamespace(text=str(len(seen))))
            seen.append((prompt, part))
        return answers

    monkeypatch.setattr(MiniGPT4, "generate", generate)
    return seen


def test_each_question_is_asked_about_its_image_and_about_another(parity_a: Case, asked: Asked) -> None:
    records = [
        question("a1", "0", kind="first"),
        question("b1", "1", text="Why?"),
        question("a2", "0", text="Where?"),
        question("two", "0", "1"),
        question("text", text="Name a fruit."),
        question("gone", "broken"),
    ]
    task = answering(parity_a, records)
    assert task.encode_images() == {5: "broken cannot be read"}
    assert list(task.parts()) == [True]
    found = {item.image_id: item for item in task.describe("c")}
    assert found.keys() == {"a1", "a2", "b1", "two", "text"}
    encoded = parity_a.model.encode_queries(parity_a.pixels[[0, 1]])

    def images_of(answer: str) -> list[int]:
        return [int((encoded - part).abs().flatten(1).sum(1).argmin()) for part in asked[int(answer)][1]]

    assert {key: images_of(item.caption) for key, item in found.items()} == {
        "a1": [0], "a2": [0], "b1": [1], "two": [0, 1], "text": []
    }  # fmt: skip
    # Of images in pairs, and of none, there is no other.
    control = {key: images_of(item.extra["shuffled"]) for key, item in found.items() if "shuffled" in item.extra}
    assert control == {"a1": [1], "a2": [1], "b1": [0]}
    assert found["a1"].extra["kind"] == "first" and found["a1"].extra["shuffled_image"] == "1"
    prompts = parity_a.model.encoder
    for item in (found["a2"].caption, found["a2"].extra["shuffled"]):
        assert asked[int(item)][0] == prompts.prompt("<Img><ImageHere></Img> Where?")


def test_the_control_can_be_left_out(parity_a: Case, asked: Asked) -> None:
    cfg = EvaluationConfig(num_workers=0, shuffled=False)
    task = answering(parity_a, [question("a", "0"), question("b", "1")], cfg)
    task.encode_images()
    assert ["shuffled" in item.extra for item in task.describe("c")] == [False, False]
    assert len(asked) == 2


def test_many_questions_about_an_image_are_answered_in_batches(parity_a: Case, asked: Asked) -> None:
    cfg = EvaluationConfig(num_workers=0, batch_size=1)
    records = [question(f"{number}", str(number % 2), text=f"Question {number}?") for number in range(11)]
    task = answering(parity_a, records, cfg)
    task.encode_images()
    found = task.describe("c")
    assert Counter(item.image_id for item in found) == Counter(record.image_id for record in records)
    assert len({prompt.__repr__() for prompt, _ in asked}) == 11 and len(asked) == 22


def test_groups_are_the_same_on_any_number_of_processes(parity_a: Case) -> None:
    records = [question(f"{n}", f"image {n // 3}") for n in range(3 * (2 * IMAGES_OF_A_GROUP + 1))]

    def groups(rank: int, size: int) -> list[list[int]]:
        data = dataset(parity_a, records)
        return Answering(
            parity_a.model, data, range(len(records)), CONFIG, rank, size, references=lambda record: record.answers
        ).groups

    one = groups(0, 1)
    # The image left over has no other to be shuffled with.
    assert [len(group) for group in one] == [IMAGES_OF_A_GROUP, IMAGES_OF_A_GROUP + 1]
    assert groups(0, 2) + groups(1, 2) == one
    assert len({records[index].image for group in one for index in group}) == sum(map(len, one))


def test_a_group_has_a_limited_number_of_questions_and_two_images(parity_a: Case) -> None:
    records = [question(f"{n}", f"image {n % 5}") for n in range(5 * QUESTIONS_OF_A_GROUP)]
    assert [len(group) for group in answering(parity_a, records).groups] == [2, 3]


def test_the_most_likely_choice_is_the_answer(parity_a: Case) -> None:
    model = parity_a.model
    choices = ("a red dog", "two", "the house by the river", "green")
    records = [question("a", "0", choices=choices), question("b", "1", text="Which?", choices=choices[:3])]
    task = answering(parity_a, records, EvaluationConfig(num_workers=0, batch_size=2), choose=True)
    task.encode_images()
    found = {item.image_id: item for item in task.describe("c")}

    def losses(text: str, image: int, options: Sequence[str]) -> list[float]:
        samples = [
            Sample(image_id="x", images=(parity_a.pixels[image],), encoded=model.encoder.encode_example(text, option))
            for option in options
        ]
        with torch.no_grad():
            return [float(model.answer_losses(collate([sample]))) for sample in samples]

    for key, text, own, other in (("a", "What?", 0, 1), ("b", "Which?", 1, 0)):
        options = choices if key == "a" else choices[:3]
        expected = losses(f"<Img><ImageHere></Img> {text}", own, options)
        assert found[key].extra["losses"] == pytest.approx(expected, abs=2e-3)
        assert found[key].caption == options[expected.index(min(expected))]
        swapped = losses(f"<Img><ImageHere></Img> {text}", other, options)
        assert found[key].extra["shuffled"] == options[swapped.index(min(swapped))]

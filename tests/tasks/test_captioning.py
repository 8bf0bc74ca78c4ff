"""Evaluation asks what was trained: earlier turns and all images of a record are in its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from minigpt4.common.errors import DataError
from minigpt4.common.schema import EvaluationConfig, GenerationConfig
from minigpt4.common.types import Record
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.tasks.captioning import Captioning
from tests.models.parity import Case

EARLIER = (("What?", "A dog."), ("So?", "Yes."))
RECORDS = [
    Record(image_id="one", images=("0",), answers=("x",)),
    Record(
        image_id="talk",
        images=("1", "0"),
        answers=("x",),
        question="Why?",
        earlier=(("What?", "A dog."), ("So?", "Yes.")),
    ),
    Record(image_id="text", images=(), answers=("x",), question="Name a fruit."),
]


def dataset(case: Case, records: Sequence[Record]) -> Any:
    def open_images(index: int) -> tuple[Tensor, ...]:
        if "broken" in records[index].images:
            raise DataError("cannot be read")
        return tuple(case.pixels[int(image)] for image in records[index].images)

    return SimpleNamespace(records=records, prompts=["<Img><ImageHere></Img> Describe it."], open=open_images)


def test_prompts_hold_earlier_turns_and_images_of_their_own(parity_a: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[int], Tensor | None]] = []
    plain = MiniGPT4.generate

    def generate(self: MiniGPT4, prompts: Sequence[list[int]], settings: Any, *, queries: Tensor | None) -> Any:
        asked.extend((prompt, queries) for prompt in prompts)
        return plain(self, prompts, settings, queries=queries)

    monkeypatch.setattr(MiniGPT4, "generate", generate)
    cfg = EvaluationConfig(num_workers=0, generation=GenerationConfig(max_new_tokens=4))
    broken = Record(image_id="broken", images=("0", "broken"), answers=("x",), question="What?")
    captioning = Captioning(parity_a.model, dataset(parity_a, [*RECORDS, broken]), range(4), cfg)
    assert list(captioning.encode_images()) == [3]
    predictions = captioning.describe("c")
    assert [prediction.image_id for prediction in predictions] == ["one", "talk", "text"]
    encoder = parity_a.model.encoder
    first = ("<Img><ImageHere></Img> <Img><ImageHere></Img> What?", "A dog.")
    assert asked[1][0] == encoder.prompt("Why?", 2, earlier=[first, EARLIER[1]])
    assert asked[2][0] == encoder.prompt("Name a fruit.", 0)
    queries = asked[0][1]
    assert queries is not None and len(queries) == 3
    order = parity_a.pixels[[0, 1, 0]]
    torch.testing.assert_close(queries, parity_a.model.encode_queries(order), rtol=1e-4, atol=1e-4)


def test_a_group_without_images(parity_a: Case, tmp_path: Path) -> None:
    cfg = EvaluationConfig(num_workers=0, generation=GenerationConfig(max_new_tokens=4))
    captioning = Captioning(parity_a.model, dataset(parity_a, RECORDS[2:]), range(1), cfg)
    assert captioning.encode_images() == {}
    assert [prediction.filename for prediction in captioning.describe("c")] == [""]


def test_captions_do_not_depend_on_the_memory_for_features(parity_a: Case) -> None:
    records = [Record(image_id=str(n), images=(str(n % 2),), answers=("x",)) for n in range(10)]
    model = parity_a.model
    images = 5 * model.encoder.num_image_tokens * model.query_width * 4 / 2**30  # five, so one group of four
    found, kept = [], []
    for memory in (2.0, images):
        cfg = EvaluationConfig(
            num_workers=0, batch_size=1, feature_memory=memory, generation=GenerationConfig(max_new_tokens=4)
        )
        captioning = Captioning(model, dataset(parity_a, records), range(10), cfg)
        assert captioning.encode_images() == {}
        predictions, lasts = [], []
        for last in captioning.parts():
            kept.append(sum(len(group.indices) for group in captioning.encoded))
            lasts.append(last)
            predictions += captioning.describe("c")
        assert lasts == [False] * (len(lasts) - 1) + [True]
        found.append(predictions)
    assert found[0] == found[1] and len(found[0]) == 10
    assert kept == [10, 4, 4, 2]


def test_unreadable_images_are_found_before_any_caption(parity_a: Case) -> None:
    records = [Record(image_id=str(n), images=("broken" if n == 9 else "0",), answers=("x",)) for n in range(10)]
    cfg = EvaluationConfig(num_workers=0, batch_size=1, feature_memory=1e-9)
    captioning = Captioning(parity_a.model, dataset(parity_a, records), range(10), cfg)
    assert captioning.encode_images() == {9: "cannot be read"}
    assert sum(len(group.indices) for group in captioning.encoded) == 4  # at least one group is kept

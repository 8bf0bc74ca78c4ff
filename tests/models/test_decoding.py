"""Many prompts at once, over few rows: each answer is what transformers' own `generate` gives the prompt alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from minigpt4.common.schema import GenerationConfig
from minigpt4.models.attention import PACKABLE
from minigpt4.models.continuous_batching import generate_batch
from minigpt4.models.generation import Answer, Generator, TokenSampler
from tests.models.small_llm import VOCABULARY, language_model

LENGTHS = (7, 12, 3, 9, 5, 11, 4)
EOS = 5


class Letters:
    """A tokenizer of one letter a token."""

    bos_id: int | None = None
    eos_id: int | None = EOS
    vocab_size = VOCABULARY

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - 48 for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(48 + i) for i in ids)


def prompts(count: int = len(LENGTHS)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, 32, generator=generator) for length in LENGTHS[:count]]


def alone(kind: str, settings: GenerationConfig, stop: str = "") -> list[Answer]:
    """Each prompt by itself, through transformers."""
    reference = Generator(language_model(kind), Letters(), settings, stop)
    return [reference.generate_with_transformers([prompt])[0] for prompt in prompts()]


def generate(kind: str, settings: GenerationConfig, rows: int | None = None, stop: str = "") -> list[Answer]:
    return Generator(language_model(kind), Letters(), settings, stop).generate(prompts(), rows)


@pytest.mark.parametrize("kind", sorted(PACKABLE))
@pytest.mark.parametrize("rows", [1, 3, None])
def test_every_prompt_is_answered_as_if_alone(kind: str, rows: int | None) -> None:
    settings = GenerationConfig(max_new_tokens=20)
    expected = alone(kind, settings)
    assert generate(kind, settings, rows) == expected
    assert len({answer.text for answer in expected}) > 1


@pytest.mark.parametrize(
    "options",
    [{"repetition_penalty": 1.7}, {"min_new_tokens": 39}, {"max_new_tokens": 1}],
)
def test_settings_mean_what_they_mean_to_transformers(options: dict[str, Any]) -> None:
    settings = GenerationConfig(**{"max_new_tokens": 40} | options)
    expected = alone("llama", settings)
    assert generate("llama", settings, 3) == expected
    assert expected != alone("llama", GenerationConfig(max_new_tokens=40))


def test_answers_end_at_the_end_token_and_at_the_stop_text() -> None:
    free = alone("llama", GenerationConfig(max_new_tokens=40, min_new_tokens=40))
    settings = GenerationConfig(max_new_tokens=40)
    ended = generate("llama", settings, 3)
    lengths = {len(answer.token_ids) for answer in ended}
    assert len(lengths) > 2 and any(length < 40 for length in lengths)
    stop = free[1].text[4:6]
    stopped = generate("llama", settings, 3, stop=stop)
    assert stopped == alone("llama", settings, stop)
    assert any(len(some.token_ids) < len(more.token_ids) for some, more in zip(stopped, ended, strict=True))


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"static_cache": True}, {"num_beams": 2, "static_cache": True}])
def test_what_transformers_generates_comes_in_order_too(options: dict[str, Any]) -> None:
    settings = GenerationConfig(max_new_tokens=12, **options)
    plain = GenerationConfig(max_new_tokens=12, num_beams=settings.num_beams)
    assert generate("llama", settings, 3) == alone("llama", plain)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}])
def test_language_models_of_another_kind(options: dict[str, Any]) -> None:
    settings = GenerationConfig(max_new_tokens=12, **options)
    assert generate("gemma2", settings, 3) == alone("gemma2", settings)


def test_a_stream_grows_to_the_answer() -> None:
    generator = Generator(language_model("llama"), Letters(), GenerationConfig(max_new_tokens=9), "")
    prompt = prompts()[1]
    growing = list(generator.stream(prompt))
    assert [len(answer.token_ids) for answer in growing] == list(range(1, 10))
    assert growing[-1] == generator.generate([prompt])[0]


def test_beams_stream_as_one_piece() -> None:
    generator = Generator(language_model("llama"), Letters(), GenerationConfig(max_new_tokens=9, num_beams=2), "")
    prompt = prompts()[1]
    assert not generator.streams
    assert list(generator.stream(prompt)) == generator.generate([prompt])


def test_the_work_stops_with_the_callers_interest() -> None:
    model = language_model("llama")
    passes: list[int] = []
    hook = model.register_forward_hook(lambda *_: passes.append(1))
    generator = Generator(model, Letters(), GenerationConfig(max_new_tokens=30, min_new_tokens=30), "")
    try:
        assert len(list(islice(generator.stream(prompts()[0]), 4))) == 4
    finally:
        hook.remove()
    assert len(passes) == 4


def test_rows_are_refilled_and_never_exceeded() -> None:
    model = language_model("llama")
    widths: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(len(kwargs["input_ids"])) if "input_ids" in kwargs else None,
        with_kwargs=True,
    )
    ends = {0: 2, 1: 9, 2: 4, 3: 4, 4: 3, 5: 6, 6: 5}
    said: dict[int, int] = {}

    def done(ids: Sequence[int]) -> bool:
        return len(ids) >= ends[ids[0]]

    def choose(logits: Tensor, ids: Sequence[Sequence[int]]) -> Tensor:
        # A fresh row says its prompt's number, so that `done` can tell the rows apart.
        fresh = iter(range(len(said), len(LENGTHS)))
        return torch.tensor([row[0] if row else next(fresh) for row in ids])

    try:
        for number, ids in generate_batch(model, prompts(), choose, done, rows=3, max_new_tokens=20):
            said[number] = len(ids)
            assert ids[0] == number
    finally:
        hook.remove()
    assert said == ends
    assert max(widths) == 3
    assert sum(widths) == sum(ends.values()) - len(ends)  # the first token of each comes from reading its prompt


def test_no_prompts_no_answers() -> None:
    assert Generator(language_model("llama"), Letters(), GenerationConfig(), "").generate([]) == []


def test_temperature_and_top_p_shape_the_draw() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])

    def shares(**options: Any) -> Tensor:
        torch.manual_seed(0)
        choose = TokenSampler(GenerationConfig(do_sample=True, min_new_tokens=0, **options), eos_id=None)
        drawn = choose(logits.repeat(4000, 1), [[]] * 4000)
        return torch.bincount(drawn, minlength=4) / 4000

    for temperature in (0.5, 1.0, 2.0):
        expected = (logits[0] / temperature).softmax(0)
        torch.testing.assert_close(shares(temperature=temperature, top_p=1.0), expected, atol=0.03, rtol=0)
    kept = logits[0, :2].softmax(0)
    torch.testing.assert_close(shares(top_p=0.8), torch.cat([kept, torch.zeros(2)]), atol=0.03, rtol=0)

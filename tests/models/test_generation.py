"""Sampling, stop strings and streaming; beams and other language models through transformers."""

from __future__ import annotations

from itertools import islice
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from minigpt4.common.schema import GenerationConfig
from minigpt4.models.generation import StopStrings, TokenSampler
from tests.ascii_tokenizer import AsciiTokenizer
from tests.models.small_llm import answers_one_by_one, language_model, make_generator, random_prompts

TOKENIZER = AsciiTokenizer()


class TestStopStrings:
    @staticmethod
    def rows_of(*texts: str) -> Tensor:
        width = max(map(len, texts))
        return torch.tensor([[0] * (width - len(text)) + TOKENIZER.encode(text) for text in texts])

    def test_each_row_stops_at_its_own_stop_string(self) -> None:
        done = StopStrings(TOKENIZER, ["###"])(self.rows_of("a dog ###", "a cat ##", "x###Human"), None)
        assert done.tolist() == [True, False, False]

    @pytest.mark.parametrize("text", ["ab###", "ab.###", "###"])
    def test_characters_around_the_stop_string_do_not_hide_it(self, text: str) -> None:
        assert StopStrings(TOKENIZER, ["###"])(self.rows_of(text), None).tolist() == [True]

    def test_the_first_of_several_ends_an_answer(self) -> None:
        stops = StopStrings(TOKENIZER, ["###", "cat", "dog house"])
        assert stops(self.rows_of("a ###", "a cat", "a dog", "a house"), None).tolist() == [True, True, False, False]
        assert stops.text_before("one ### two cats") == stops.text_before("one cat ###") == "one "
        assert [stops.stable_text(text) for text in ("a c", "a dog h", "a #", "a cab")] == ["a", "a", "a", "a cab"]

    def test_an_empty_stop_string_never_stops(self) -> None:
        assert StopStrings(TOKENIZER, [""])(self.rows_of("a", "b"), None).tolist() == [False, False]


@pytest.mark.parametrize(
    ("text", "stable"),
    [("a dog", "a dog"), ("a dog #", "a dog"), ("a dog ##", "a dog"), ("caf\ufffd", "caf"), ("# a", "# a"), ("", "")],
)
def test_text_that_later_tokens_may_change_is_held_back(text: str, stable: str) -> None:
    assert StopStrings(TOKENIZER, ["###"]).stable_text(text) == stable


def test_temperature_and_top_p_shape_the_distribution() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])

    def shares(**options: Any) -> Tensor:
        torch.manual_seed(0)
        sample = TokenSampler(GenerationConfig(do_sample=True, min_new_tokens=0, **options), ends=())
        sampled = sample(logits.repeat(4000, 1), [[]] * 4000)
        return torch.bincount(sampled, minlength=4) / 4000

    for temperature in (0.5, 1.0, 2.0):
        expected = (logits[0] / temperature).softmax(0)
        torch.testing.assert_close(shares(temperature=temperature, top_p=1.0), expected, atol=0.03, rtol=0)
    kept = logits[0, :2].softmax(0)
    torch.testing.assert_close(shares(top_p=0.8), torch.cat([kept, torch.zeros(2)]), atol=0.03, rtol=0)


def test_rows_with_random_numbers_of_their_own() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, float("-inf")]])
    sample = TokenSampler(GenerationConfig(do_sample=True, min_new_tokens=0, top_p=0.95), ends=())
    drawn = sample(logits.repeat(4000, 1), [[]] * 4000, [Random(f"{row}") for row in range(4000)])
    expected = torch.cat([logits[0, :3].softmax(0), torch.zeros(2)])
    torch.testing.assert_close(torch.bincount(drawn, minlength=5) / 4000, expected, atol=0.03, rtol=0)
    others = torch.linspace(-3, 3, 15).view(3, 5)
    rows = torch.cat([others, logits])
    alone, among = Random("7"), Random("7")
    for _ in range(20):
        company = sample(rows.clone(), [[]] * 4, [Random(), Random(), Random(), among])
        assert company[3:].equal(sample(logits.clone(), [[]], [alone]))


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"static_cache": True}, {"num_beams": 2, "static_cache": True}])
def test_answers_of_transformers_are_in_order(options: dict[str, Any]) -> None:
    settings = GenerationConfig(max_new_tokens=12, **options)
    without_static_cache = GenerationConfig(max_new_tokens=12, num_beams=settings.num_beams)
    answers = make_generator("llama", settings).generate(random_prompts(), rows=3)
    assert answers == answers_one_by_one("llama", without_static_cache)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}])
def test_language_models_with_another_attention(options: dict[str, Any]) -> None:
    settings = GenerationConfig(max_new_tokens=12, **options)
    answers = make_generator("gemma2", settings).generate(random_prompts(), rows=3)
    assert answers == answers_one_by_one("gemma2", settings)


def test_a_stream_grows_to_the_answer() -> None:
    generator = make_generator("llama", GenerationConfig(max_new_tokens=9))
    prompt = random_prompts()[1]
    growing = list(generator.stream(prompt))
    assert [len(answer.token_ids) for answer in growing] == list(range(1, 10))
    assert growing[-1] == generator.generate([prompt])[0]


def test_beams_stream_the_complete_answer_only() -> None:
    generator = make_generator("llama", GenerationConfig(max_new_tokens=9, num_beams=2))
    prompt = random_prompts()[1]
    assert not generator.streams
    assert list(generator.stream(prompt)) == generator.generate([prompt])


def test_generation_stops_when_the_stream_is_not_read() -> None:
    model = language_model("llama")
    passes: list[int] = []
    hook = model.register_forward_hook(lambda *_: passes.append(1))
    generator = make_generator("llama", GenerationConfig(max_new_tokens=30, min_new_tokens=30))
    try:
        assert len(list(islice(generator.stream(random_prompts()[0]), 4))) == 4
    finally:
        hook.remove()
    assert len(passes) == 4


def test_no_prompts_no_answers() -> None:
    assert make_generator("llama", GenerationConfig()).generate([]) == []

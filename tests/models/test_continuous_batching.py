"""Many prompts over few rows: each answer is that of transformers' own `generate` to the prompt alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from minigpt4.common import matmul
from minigpt4.common.schema import GenerationConfig
from minigpt4.models import attention, continuous_batching
from minigpt4.models.attention import PACKABLE, Packed
from minigpt4.models.continuous_batching import generate_batch, shared_prefix_length
from minigpt4.models.generation import Generator
from tests.models.small_llm import (
    LetterTokenizer,
    answers_one_by_one,
    language_model,
    make_generator,
    random_prompts,
)


@pytest.mark.parametrize("kind", sorted(PACKABLE))
@pytest.mark.parametrize("rows", [1, 3, None])
def test_every_prompt_is_answered_as_if_alone(kind: str, rows: int | None) -> None:
    settings = GenerationConfig(max_new_tokens=20)
    expected = answers_one_by_one(kind, settings)
    assert make_generator(kind, settings).generate(random_prompts(), rows) == expected
    assert len({answer.text for answer in expected}) > 1


@pytest.mark.parametrize(
    "options",
    [{"repetition_penalty": 1.7}, {"min_new_tokens": 39}, {"max_new_tokens": 1}],
)
def test_settings_have_the_meaning_of_transformers(options: dict[str, Any]) -> None:
    settings = GenerationConfig(**{"max_new_tokens": 40} | options)
    expected = answers_one_by_one("llama", settings)
    assert make_generator("llama", settings).generate(random_prompts(), 3) == expected
    assert expected != answers_one_by_one("llama", GenerationConfig(max_new_tokens=40))


def test_answers_end_at_the_end_token_and_at_the_stop_string() -> None:
    unstopped = answers_one_by_one("llama", GenerationConfig(max_new_tokens=40, min_new_tokens=40))
    settings = GenerationConfig(max_new_tokens=40)
    ended = make_generator("llama", settings).generate(random_prompts(), 3)
    lengths = {len(answer.token_ids) for answer in ended}
    assert len(lengths) > 2 and any(length < 40 for length in lengths)
    stop = unstopped[1].text[4:6]
    stopped = make_generator("llama", settings, stop).generate(random_prompts(), 3)
    assert stopped == answers_one_by_one("llama", settings, stop)
    assert any(len(some.token_ids) < len(more.token_ids) for some, more in zip(stopped, ended, strict=True))


@pytest.mark.parametrize(("small", "threads"), [(2, 3), (3, 1)])
def test_steps_of_small_products_are_computed_by_one_thread(
    small: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = language_model("llama")
    monkeypatch.setattr(matmul, "SMALL_PRODUCT", small * max(weight.numel() for weight in llm.parameters()))
    used: list[int] = []
    counting = llm.register_forward_pre_hook(lambda *_: used.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        settings = GenerationConfig(max_new_tokens=4, min_new_tokens=4)
        make_generator("llama", settings).generate(random_prompts()[:3], 3)
    finally:
        torch.set_num_threads(before)
        counting.remove()
    assert used == [3, threads, threads, threads]


def test_rows_are_refilled_and_never_exceeded() -> None:
    model = language_model("llama")
    rows_of_steps: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: rows_of_steps.append(len(kwargs["input_ids"])) if "input_ids" in kwargs else None,
        with_kwargs=True,
    )
    expected = {0: 2, 1: 9, 2: 4, 3: 4, 4: 3, 5: 6, 6: 5}
    lengths: dict[int, int] = {}

    def finished(ids: Sequence[int]) -> bool:
        return len(ids) >= expected[ids[0]]

    def sample(logits: Tensor, ids: Sequence[Sequence[int]]) -> Tensor:
        # The first token of a row is its prompt's index, so that `finished` can tell the rows apart.
        indices = iter(range(len(lengths), len(expected)))
        return torch.tensor([row[0] if row else next(indices) for row in ids])

    try:
        for index, ids in generate_batch(model, random_prompts(), sample, finished, rows=3, max_new_tokens=20):
            lengths[index] = len(ids)
            assert ids[0] == index
    finally:
        hook.remove()
    assert lengths == expected
    assert max(rows_of_steps) == 3
    assert sum(rows_of_steps) == sum(expected.values()) - len(expected)  # the first token of each comes from prefill


class TestSharedPrefix:
    own_lengths = (7, 12, 1, 9, 5)
    shared = 6

    def prompts(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(2)
        prefix = torch.randn(self.shared, 32, generator=generator)
        return [torch.cat([prefix, torch.randn(length, 32, generator=generator)]) for length in self.own_lengths]

    @contextmanager
    def prefilled_tokens(self, model: nn.Module) -> Iterator[list[int]]:
        """Number of tokens in each forward pass over embeddings."""
        counts: list[int] = []
        hook = model.register_forward_pre_hook(
            lambda module, args, kwargs: (
                counts.append(kwargs["inputs_embeds"].shape[1]) if "inputs_embeds" in kwargs else None
            ),
            with_kwargs=True,
        )
        try:
            yield counts
        finally:
            hook.remove()

    @pytest.mark.parametrize("method", ["_attend_per_sample", "_attend_padded"])
    @pytest.mark.parametrize("rows", [2, 5])
    @pytest.mark.parametrize("kind", sorted(PACKABLE))
    def test_answers_are_those_of_each_prompt_alone(
        self, kind: str, rows: int, method: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Packed, "attend", getattr(Packed, method))
        monkeypatch.setattr(continuous_batching, "MIN_SHARED_TOKENS", 1)
        model, prompts = language_model(kind, sliding_window=None), self.prompts()
        generator = Generator(model, LetterTokenizer(), GenerationConfig(max_new_tokens=20), "")
        expected = [generator.generate_with_transformers([prompt])[0] for prompt in prompts]
        with self.prefilled_tokens(model) as counts:
            assert generator.generate(prompts, rows) == expected
        assert len({answer.text for answer in expected}) > 1
        assert counts[0] == self.shared and sum(counts) == self.shared + sum(self.own_lengths)

    def test_samples_too_long_for_unfused_attention(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(continuous_batching, "MIN_SHARED_TOKENS", 1)
        monkeypatch.setattr(attention, "MAX_UNFUSED_TOKENS", self.shared + 5)
        generator, prompts = make_generator("llama", GenerationConfig(max_new_tokens=20)), self.prompts()
        expected = [generator.generate_with_transformers([prompt])[0] for prompt in prompts]
        assert generator.generate(prompts) == expected

    def test_a_prefix_that_saves_little_gets_no_forward_pass(self) -> None:
        generator = make_generator("llama", GenerationConfig(max_new_tokens=2))
        with self.prefilled_tokens(generator.llm) as counts:
            generator.generate(self.prompts())
        assert counts == [sum(self.own_lengths) + self.shared * len(self.own_lengths)]

    @pytest.mark.parametrize(
        "lengths, changed, expected",
        [
            ((8, 9, 10), None, 7),
            ((8, 9, 10), 3, 3),
            ((8, 9, 10), 0, 0),
            ((8,), None, 0),
            ((1, 5), None, 0),
            ((), None, 0),
        ],
    )
    def test_length(self, lengths: Sequence[int], changed: int | None, expected: int) -> None:
        """`changed`: a position of the second prompt where one number differs, with equal tokens behind it."""
        longest = torch.randn(10, 4)
        prompts = [longest[:length].clone() for length in lengths]
        if changed is not None:
            prompts[1][changed, 2] += 1
        assert shared_prefix_length(prompts) == expected

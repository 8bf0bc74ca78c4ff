"""What all prompts begin with is read once, and the answers stay what they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from minigpt4.common.schema import GenerationConfig
from minigpt4.models import attention as packing
from minigpt4.models import continuous_batching as decoding
from minigpt4.models.attention import PACKABLE
from minigpt4.models.continuous_batching import shared_tokens
from minigpt4.models.generation import Generator
from tests.models.small_llm import language_model
from tests.models.test_decoding import Letters

OWN = (7, 12, 1, 9, 5)
SHARED = 6


def beginning_alike(shared: int = SHARED) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    first = torch.randn(shared, 32, generator=generator)
    return [torch.cat([first, torch.randn(length, 32, generator=generator)]) for length in OWN]


@contextmanager
def tokens_read(model: nn.Module) -> Iterator[list[int]]:
    """Tokens of each pass over embeddings."""
    read: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: (
            read.append(kwargs["inputs_embeds"].shape[1]) if "inputs_embeds" in kwargs else None
        ),
        with_kwargs=True,
    )
    try:
        yield read
    finally:
        hook.remove()


@pytest.mark.parametrize("attention", ["_one_by_one", "_side_by_side"])
@pytest.mark.parametrize("rows", [2, 5])
@pytest.mark.parametrize("kind", sorted(PACKABLE))
def test_the_answers_are_those_of_each_prompt_alone(
    kind: str, rows: int, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing.Packed, "attend", getattr(packing.Packed, attention))
    monkeypatch.setattr(decoding, "MIN_SHARED_TOKENS", 1)
    model, prompts = language_model(kind, sliding_window=None), beginning_alike()
    generator = Generator(model, Letters(), GenerationConfig(max_new_tokens=20), "")
    expected = [generator.generate_with_transformers([prompt])[0] for prompt in prompts]
    with tokens_read(model) as read:
        assert generator.generate(prompts, rows) == expected
    assert len({answer.text for answer in expected}) > 1
    assert read[0] == SHARED and sum(read) == SHARED + sum(OWN)


def test_a_long_prefix_takes_the_way_of_long_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MIN_SHARED_TOKENS", 1)
    monkeypatch.setattr(packing, "SHORT", SHARED + 5)
    generator = Generator(language_model("llama"), Letters(), GenerationConfig(max_new_tokens=20), "")
    prompts = beginning_alike()
    assert generator.generate(prompts) == [generator.generate_with_transformers([prompt])[0] for prompt in prompts]


def test_a_prefix_that_saves_little_is_not_read_by_itself() -> None:
    model = language_model("llama")
    generator = Generator(model, Letters(), GenerationConfig(max_new_tokens=2), "")
    with tokens_read(model) as read:
        generator.generate(beginning_alike())
    assert read == [sum(OWN) + SHARED * len(OWN)]


@pytest.mark.parametrize(
    "lengths, changed, expected",
    [((8, 9, 10), None, 7), ((8, 9, 10), 3, 3), ((8, 9, 10), 0, 0), ((8,), None, 0), ((1, 5), None, 0), ((), None, 0)],
)
def test_what_counts_as_shared(lengths: Sequence[int], changed: int | None, expected: int) -> None:
    """`changed`: a place in the second prompt where one number differs, with equal tokens behind it."""
    whole = torch.randn(10, 4)
    prompts = [whole[:length].clone() for length in lengths]
    if changed is not None:
        prompts[1][changed, 2] += 1
    assert shared_tokens(prompts) == expected

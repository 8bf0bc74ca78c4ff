"""Packed sequences have the losses and gradients of padded ones, and no sample attends to another."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from minigpt4.models.attention import PACKABLE, Packed, packable, packed_attention
from minigpt4.models.minigpt4 import answer_losses, packed_losses, padded_losses
from tests.models.small_llm import LENGTHS, embeddings, language_model, make_batch


@pytest.mark.parametrize("kind", sorted(PACKABLE))
@pytest.mark.parametrize("attention", ["_attend_per_sample", "_attend_padded"])
def test_packed_equals_padded(kind: str, attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Packed, "attend", getattr(Packed, attention))
    model = language_model(kind, sliding_window=None)
    batch = make_batch()
    results = []
    for losses_of in (packed_losses, padded_losses):
        embeds = embeddings(model, batch)
        losses = losses_of(model, embeds, batch)
        (gradient,) = torch.autograd.grad(losses.sum(), embeds)
        results.append((losses.detach(), gradient))
    (packed, packed_gradient), (padded, padded_gradient) = results
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed_gradient, padded_gradient, rtol=1e-3, atol=1e-5)
    assert packed.std() > 0 and packed_gradient.abs().max() > 0


@pytest.mark.parametrize("attention", ["_attend_per_sample", "_attend_padded"])
@pytest.mark.parametrize("poisoned_row", range(len(LENGTHS)))
def test_no_sample_attends_to_another(attention: str, poisoned_row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Packed, "attend", getattr(Packed, attention))
    model, batch = language_model("llama"), make_batch()
    embeds = embeddings(model, batch)
    clean = packed_losses(model, embeds, batch)
    others = [row for row in range(len(LENGTHS)) if row != poisoned_row]
    poisoned = embeds.detach().clone()
    poisoned[poisoned_row] = float("nan")
    losses = packed_losses(model, poisoned, batch)
    assert losses[poisoned_row].isnan()
    assert torch.equal(losses[others], clean[others])
    (gradient,) = torch.autograd.grad(clean[poisoned_row], embeds)
    assert gradient[poisoned_row].abs().max() > 0 and gradient[others].abs().max() == 0


def test_losses_are_each_samples_own() -> None:
    model, batch = language_model("llama"), make_batch()
    together = answer_losses(model, embeddings(model, batch), batch)
    for row, lengths in enumerate(LENGTHS):
        alone = make_batch((lengths,))
        alone.input_ids[0] = batch.input_ids[row, : sum(lengths)]
        alone.labels[0] = batch.labels[row, : sum(lengths)]
        torch.testing.assert_close(answer_losses(model, embeddings(model, alone), alone)[0], together[row])


def test_bfloat16_stays_near_float32() -> None:
    model, batch = language_model("llama"), make_batch()
    exact = packed_losses(model, embeddings(model, batch), batch)
    try:
        rough = packed_losses(model.bfloat16(), embeddings(model, batch), batch)
    finally:
        model.float()
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.02, atol=0.02)
    assert not torch.equal(rough, exact)


def test_only_known_attention_is_packed() -> None:
    assert packable(language_model("llama"))
    assert packable(language_model("mistral", sliding_window=None))
    assert not packable(language_model("mistral", sliding_window=8))
    assert not packable(language_model("gemma2"))


@pytest.mark.parametrize("options", [{"kind": "mistral", "sliding_window": 8}, {"kind": "gemma2"}])
def test_other_attention_is_padded(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = language_model(**options), make_batch()
    expected = padded_losses(model, embeddings(model, batch), batch)
    monkeypatch.setattr("minigpt4.models.minigpt4.packed_losses", None)
    assert torch.equal(answer_losses(model, embeddings(model, batch), batch), expected)


def test_the_original_attention_is_restored() -> None:
    model = language_model("llama")
    original = model.config._attn_implementation
    with pytest.raises(ZeroDivisionError), packed_attention(model):
        assert model.config._attn_implementation != original
        raise ZeroDivisionError
    assert model.config._attn_implementation == original

"""The work of a step by formula, compared with what torch counts while it runs."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from minigpt4.models.flops import Work, WorkMeter, datasheet_flops, forward_flops
from minigpt4.models.minigpt4 import answer_losses
from tests.models.parity import Case
from tests.models.small_llm import LENGTHS, embeddings, language_model, make_batch


def counted(model: nn.Module) -> float:
    batch = make_batch()
    with FlopCounterMode(display=False) as counter:
        answer_losses(model, embeddings(model, batch), batch).sum().backward()
    return float(counter.get_total_flops())


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_the_formula_counts_what_is_computed(kind: str) -> None:
    model = language_model(kind, hidden_size=128, intermediate_size=512)
    # torch counts all of attention's square, and its backward 2.5 times: the sizes here keep attention's share small.
    assert WorkMeter(model, 0.0).of(make_batch()).flops == pytest.approx(counted(model), rel=0.04)


def test_a_frozen_weight_costs_four_operations_a_token_not_six() -> None:
    model = language_model("llama")
    layers = sum(p.numel() for p in model.model.layers.parameters() if p.ndim == 2)
    work = WorkMeter(model, 0.0).of(make_batch())
    assert 4 * layers * work.tokens < work.flops < 5 * layers * work.tokens


def test_tokens_with_and_without_padding() -> None:
    real = sum(map(sum, LENGTHS))
    packed = WorkMeter(language_model("llama"), 0.0).of(make_batch())
    assert (packed.samples, packed.tokens, packed.padded_tokens) == (4, real, real)
    padded = WorkMeter(language_model("gemma2"), 0.0).of(make_batch())
    assert (padded.samples, padded.tokens, padded.padded_tokens) == (4, real, 4 * max(map(sum, LENGTHS)))


def test_images_cost_the_encoders_operations_unless_their_features_are_cached(parity_a: Case) -> None:
    model = parity_a.model
    batch = parity_a.training_batch()
    assert batch.images is not None
    count = len(batch.images)
    without = model.work_meter().of(replace(batch, images=None)).flops
    image = forward_flops(model.encode_queries, batch.images[:1])
    assert image > 0
    assert model.work_meter().of(batch).flops == pytest.approx(without + count * image, rel=1e-6)
    queries = model.encode_queries(batch.images)
    assert model.work_meter().of(replace(batch, images=queries)).flops == without


def test_quantised_layers_count_with_their_unpacked_size() -> None:
    class Linear4bit(nn.Linear):
        def __init__(self) -> None:
            super().__init__(32, 48, bias=False)
            self.weight = nn.Parameter(torch.zeros(32 * 48 // 2, 1))

    plain, quantised = language_model("llama"), deepcopy(language_model("llama"))
    for layer in quantised.model.layers:
        layer.mlp.gate_proj = Linear4bit()
    batch = make_batch()
    assert WorkMeter(quantised, 0.0).of(batch) == WorkMeter(plain, 0.0).of(batch)


def test_work_adds_up() -> None:
    assert Work(1, 2, 3, 4) + Work(10, 20, 30, 40) == Work(11, 22, 33, 44)


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA GeForce RTX 3090", 71),
        ("NVIDIA L40S", 362),
        ("NVIDIA A10G", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ],
)
def test_datasheets_are_found_by_the_name_of_a_gpu(name: str, teraflops: float | None) -> None:
    found = datasheet_flops(name, torch.bfloat16)
    assert found == (None if teraflops is None else teraflops * 1e12)
    assert datasheet_flops(name, torch.float32) is None

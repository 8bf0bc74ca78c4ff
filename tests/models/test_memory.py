"""Memory by shapes alone, beside that of the real tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from minigpt4.common.schema import LoraConfig, LowResource
from minigpt4.models.loading import build_model, build_prompt_encoder
from minigpt4.models.memory import (
    Allocations,
    TrainingMemory,
    empty_model,
    frozen_bytes,
    kv_cache_bytes,
    planned_batch,
    training_memory,
    with_quantised_llm,
)
from minigpt4.models.minigpt4 import MiniGPT4
from tests.models.parity import Case, model_config

LENGTHS, TARGETS = [21, 40, 33], [9, 17, 4]


@pytest.fixture(scope="module")
def empty(parity_a: Case) -> MiniGPT4:
    """The fixture's model without weights."""
    cfg = model_config(parity_a.folder)
    return empty_model(cfg, build_prompt_encoder(cfg), torch.float32)


@pytest.fixture(scope="module")
def memory(empty: MiniGPT4) -> TrainingMemory:
    return training_memory(empty, LENGTHS, TARGETS)


def test_a_step_on_shapes_takes_what_a_real_step_takes(memory: TrainingMemory, parity_a: Case) -> None:
    model = parity_a.model
    size = model.visual_encoder.image_size
    with Allocations() as allocations:
        images = torch.zeros(len(LENGTHS), 3, size, size, dtype=torch.uint8)
        loss = model(planned_batch(LENGTHS, TARGETS, model.encoder.num_image_tokens, images))
        saved = allocations.now
        loss.backward()
    model.llama_proj.zero_grad()
    assert (memory.saved, memory.saved + memory.temporary) == pytest.approx((saved, allocations.peak), rel=0.002)
    real = {name: sum(p.nbytes for p in part.parameters()) for name, part in model.named_children()}
    assert memory.vision == real["visual_encoder"] + real["bridge"]
    assert (memory.llm, memory.trainable) == (real["llama_model"], real["llama_proj"])
    assert (memory.gradients, memory.optimizer) == (real["llama_proj"], 2 * real["llama_proj"])
    assert memory.total == pytest.approx(1.05 * (memory.total - memory.libraries), abs=1)


def test_what_is_left_out_is_not_counted(empty: MiniGPT4, memory: TrainingMemory) -> None:
    cached = training_memory(empty, LENGTHS, TARGETS, cached=True, world_size=2)
    assert cached.vision == 0 and cached.llm == memory.llm
    assert cached.saved == pytest.approx(memory.saved, rel=0.05)
    assert cached.gradients == memory.trainable * 5 / 2  # own, received, and this process's half of the sum
    half_as_many = training_memory(empty, LENGTHS[:1], TARGETS[:1], on_gpu=True)
    assert half_as_many.saved < memory.saved / 2
    assert half_as_many.libraries == 0  # a plan for a GPU adds CUDA's own memory


def test_recomputed_blocks_keep_less(parity_a: Case, memory: TrainingMemory) -> None:
    cfg = model_config(parity_a.folder, recompute_llm=True)
    model = empty_model(cfg, build_prompt_encoder(cfg), torch.float32)
    assert training_memory(model, LENGTHS, TARGETS).saved < memory.saved


def test_quantised_layers_take_their_bits_and_scales(memory: TrainingMemory, empty: MiniGPT4) -> None:
    llm = empty.llama_model
    linear = [m for m in llm.modules() if isinstance(m, nn.Linear) and m is not llm.get_output_embeddings()]
    weights, rows = sum(m.weight.numel() for m in linear), sum(m.out_features for m in linear)
    assert all(m.weight.numel() % 64 == 0 for m in linear)
    others = memory.llm - 4 * weights
    assert frozen_bytes(llm, LowResource.int8) == others + weights + 4 * rows
    assert frozen_bytes(llm, LowResource.nf4) == others + weights * 9 // 16
    small = with_quantised_llm(memory, llm, LowResource.nf4)
    largest = max(m.weight.nbytes for m in llm.modules() if isinstance(m, nn.Linear))
    assert (small.llm, small.temporary) == (others + weights * 9 // 16, memory.temporary + largest)
    assert with_quantised_llm(memory, llm, LowResource.off) == memory


def test_keys_and_values_are_those_of_the_cache(parity_a: Case) -> None:
    llm, cache = parity_a.model.llama_model, DynamicCache()
    with torch.no_grad():
        llm(torch.ones(3, 11, dtype=torch.long), past_key_values=cache, use_cache=True)
    assert sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) == kv_cache_bytes(llm, 3, 11)


def test_no_weights_are_needed(parity_a: Case, tmp_path: Path) -> None:
    from shutil import copytree, ignore_patterns

    llama = copytree(parity_a.folder / "llama", tmp_path / "llama", ignore=ignore_patterns("*.safetensors", "*.bin"))
    cfg = model_config(parity_a.folder, llama_model=str(llama), vit_weights="missing.pth", q_former_model="missing.pth")
    assert empty_model(cfg, build_prompt_encoder(cfg), torch.bfloat16).llama_model.dtype == torch.bfloat16


def test_adapters_train(parity_a: Case) -> None:
    plain = model_config(parity_a.folder)
    adapted = model_config(parity_a.folder, ckpt=None, lora=LoraConfig(r=2, dropout=0.1))
    with_adapters = empty_model(adapted, build_prompt_encoder(adapted), torch.float32)
    real = build_model(adapted, torch.device("cpu"), torch.float32)
    memory = training_memory(with_adapters, LENGTHS, TARGETS)
    assert memory.trainable == sum(p.nbytes for p in real.parameters() if p.requires_grad)
    llm = empty_model(plain, build_prompt_encoder(plain), torch.float32).llama_model
    for low_resource in LowResource:
        assert frozen_bytes(with_adapters.llama_model, low_resource) == frozen_bytes(llm, low_resource)

"""Adapters in the language model: what trains, names and files, several checkpoints, quantised and merged weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from minigpt4.common.checkpoint import model_state, read_checkpoint, unexpected_keys, write_checkpoint
from minigpt4.common.errors import CheckpointError, ConfigError
from minigpt4.common.schema import GenerationConfig, LoraConfig, LowResource, ModelConfig, check_values
from minigpt4.models.loading import build_model, load_projection, with_projection
from minigpt4.models.lora import merge_lora
from minigpt4.models.minigpt4 import CHECKPOINT_UNUSED, MiniGPT4
from tests.models.parity import CPU, Case, build_with, model_config

LORA_A = "llama_model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def losses(model: MiniGPT4, case: Case) -> Tensor:
    with torch.no_grad():
        return model.answer_losses(case.training_batch())


@pytest.fixture
def model(parity_v: Case) -> MiniGPT4:
    return build_with(parity_v)


@pytest.fixture
def other(parity_v: Case, tmp_path: Path) -> Path:
    """A checkpoint with other adapters than the fixture's, and the same projection."""
    state = parity_v.model.trainable_state()
    changed = {name: tensor.flip(0) if ".lora_" in name else tensor for name, tensor in state.items()}
    write_checkpoint(tmp_path / "other.pth", {"model": changed, "metadata": parity_v.model.metadata()})
    return tmp_path / "other.pth"


def test_published_names_survive_the_round_trip_bit_for_bit(parity_v: Case, tmp_path: Path) -> None:
    published = model_state(read_checkpoint(parity_v.folder / "minigpt4.pth"))
    ours = parity_v.model.trainable_state()
    assert set(ours) == set(published) - {
        name for name in published if not unexpected_keys([name], [], CHECKPOINT_UNUSED)
    }
    assert len([name for name in ours if ".lora_" in name]) == 3 * 2 * 2
    assert all(torch.equal(ours[name], published[name]) for name in ours)
    write_checkpoint(tmp_path / "own.pth", {"model": ours, "metadata": parity_v.model.metadata()})
    again = build_with(parity_v, ckpt=str(tmp_path / "own.pth"))
    assert all(torch.equal(tensor, published[name]) for name, tensor in again.trainable_state().items())


def test_names_of_a_newer_peft(parity_v: Case, model: MiniGPT4, other: Path, tmp_path: Path) -> None:
    state = model_state(read_checkpoint(other))
    named = {
        name.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default."): t for name, t in state.items()
    }
    assert len(set(named) - set(state)) == 12
    write_checkpoint(tmp_path / "named.pth", {"model": named})
    load_projection(model, tmp_path / "named.pth")
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.trainable_state().items())


def test_adapters_and_projection_are_all_that_trains(parity_v: Case, model: MiniGPT4) -> None:
    assert type(model.llama_model) is LlamaForCausalLM
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(trainable) == set(model.trainable_names())
    frozen = {name: p.clone() for name, p in model.named_parameters() if name not in trainable}
    model(parity_v.training_batch()).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in trainable.values())
    torch.optim.SGD([p for p in model.parameters() if p.grad is not None], lr=0.1).step()
    assert all(torch.equal(model.get_parameter(name), tensor) for name, tensor in frozen.items())


def test_adapters_are_in_float32_above_other_weights(parity_v: Case) -> None:
    model = build_model(model_config(parity_v.folder), CPU, torch.bfloat16)
    formats = {name: p.dtype for name, p in model.named_parameters() if name.startswith("llama_model")}
    assert {dtype for name, dtype in formats.items() if ".lora_" in name} == {torch.float32}
    assert {dtype for name, dtype in formats.items() if ".lora_" not in name} == {torch.bfloat16}
    assert losses(model, parity_v).isfinite().all()


def test_only_the_adapters_dropout_lives_in_training(parity_v: Case) -> None:
    lora = LoraConfig(r=4, alpha=16, dropout=0.5)
    model = build_with(parity_v, lora=lora)
    alive = {name for name, module in model.train().named_modules() if module.training and not list(module.children())}
    assert alive == {"llama_proj"} | {name for name in alive if ".lora_dropout." in name} and len(alive) == 1 + 6
    batch = parity_v.training_batch()
    torch.manual_seed(0)
    first, second = model(batch), model(batch)
    torch.manual_seed(0)
    assert torch.equal(model(batch), first) and not torch.equal(first, second)
    model.eval()
    assert torch.equal(losses(model, parity_v), losses(parity_v.model, parity_v))


def test_a_projection_alone_leaves_new_adapters_without_effect(
    parity_v: Case, model: MiniGPT4, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = {name: t for name, t in parity_v.model.trainable_state().items() if ".lora_" not in name}
    write_checkpoint(tmp_path / "c.pth", {"model": state})
    load_projection(model, tmp_path / "c.pth")
    assert "the adapters (model.lora) begin without effect" in caplog.text
    plain = build_with(parity_v, ckpt=str(tmp_path / "c.pth"), lora=LoraConfig(), arch="minigpt4")
    torch.testing.assert_close(losses(model, parity_v), losses(plain, parity_v))
    assert not torch.allclose(losses(model, parity_v), losses(parity_v.model, parity_v))


def test_several_checkpoints_side_by_side_each_have_their_adapters(
    parity_v: Case, model: MiniGPT4, other: Path
) -> None:
    before = losses(model, parity_v)
    second = with_projection(model, other)
    swapped = losses(second, parity_v)
    assert torch.equal(losses(model, parity_v), before) and not torch.equal(swapped, before)
    load_projection(model, other)
    assert torch.equal(losses(model, parity_v), swapped)
    shared = {p.data_ptr() for p in model.llama_model.parameters() if not p.requires_grad}
    assert {p.data_ptr() for p in second.llama_model.parameters() if not p.requires_grad} == shared
    assert not {p.data_ptr() for p in second.llama_model.parameters() if p.requires_grad} & {
        p.data_ptr() for p in model.llama_model.parameters()
    }


def test_streams_of_two_checkpoints_may_alternate(parity_v: Case, model: MiniGPT4, other: Path) -> None:
    settings = GenerationConfig(max_new_tokens=8)
    prompt = model.encoder.prompt("<Img><ImageHere></Img> What is it?")
    second = with_projection(model, other)
    alone = [list(each.stream(prompt, settings, images=parity_v.pixels[:1])) for each in (model, second)]
    together = [each.stream(prompt, settings, images=parity_v.pixels[:1]) for each in (model, second)]
    mixed = [[], []]
    for steps in zip(*together, strict=False):
        for answers, answer in zip(mixed, steps, strict=True):
            answers.append(answer)
    assert alone[0] != alone[1]
    assert all(alone[row][: len(mixed[row])] == mixed[row] for row in range(2)) and len(mixed[0]) > 2


@pytest.mark.parametrize(("changes", "words"), [({"alpha": 8}, ("lora.alpha", '"8"', '"16"')), ({"r": 2}, ("lora.r",))])
def test_a_checkpoint_of_other_adapters(
    parity_v: Case, other: Path, changes: dict[str, int], words: tuple[str, ...]
) -> None:
    lora = LoraConfig(r=4, alpha=16)
    with pytest.raises(CheckpointError) as caught:
        build_with(parity_v, ckpt=str(other), lora=replace(lora, **changes))
    assert all(word in str(caught.value) for word in (str(other), *words))


def test_adapters_that_the_configuration_does_not_know(parity_v: Case) -> None:
    with pytest.raises(CheckpointError, match=r"has adapters of rank 4 in q_proj, v_proj: set model\.lora\.r"):
        build_with(parity_v, lora=LoraConfig(), arch="minigpt4")
    with pytest.raises(CheckpointError, match=rf"{LORA_A} has shape \(4, 64\).* has adapters of rank 4 in"):
        build_with(parity_v, lora=LoraConfig(r=8))
    with pytest.raises(CheckpointError, match=r"missing \S*o_proj"):
        build_with(parity_v, lora=LoraConfig(r=4, targets=["q_proj", "v_proj", "o_proj"]))


@pytest.mark.parametrize("target", ["q_prj", "self_attn", "lm_head", "embed_tokens"])
def test_targets_that_are_no_linear_layers_of_the_decoder(parity_v: Case, target: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.lora\.targets: .* no linear layers '{target}'; "):
        build_with(parity_v, ckpt=None, lora=LoraConfig(r=4, targets=["q_proj", target]))


def test_settings_without_a_rank_are_said_to_be_unused(parity_v: Case, caplog: pytest.LogCaptureFixture) -> None:
    build_with(parity_v, ckpt=None, lora=LoraConfig())
    assert "model.lora" not in caplog.text
    build_with(parity_v, ckpt=None, lora=LoraConfig(alpha=32))
    assert "model.lora.r is 0, so there are no adapters, and nothing else in model.lora is used" in caplog.text


def test_a_rank_without_targets() -> None:
    with pytest.raises(ConfigError, match=r"model\.lora\.targets: no layer to adapt"):
        check_values(ModelConfig(lora=LoraConfig(r=4, targets=[])), "model.")


@pytest.mark.parametrize(("low_resource", "alike"), [(LowResource.int8, 0.95), (LowResource.nf4, 0.9999)])
def test_adapters_train_above_a_quantised_language_model(
    parity_v: Case, low_resource: LowResource, alike: float, other: Path
) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    model = build_with(parity_v, low_resource=low_resource)
    reference = build_with(parity_v)
    for name, layer in model.llama_model.named_modules():
        if isinstance(layer, bitsandbytes.nn.Linear4bit):  # as it computes; 8 bit also rounds what goes in
            weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            reference.llama_model.get_submodule(name).weight.data = weight.float()
    batch = parity_v.training_batch()
    for each in (model, reference):
        (each(batch) / batch.num_targets).backward()
    for name in model.trainable_names():
        ours, plain = model.get_parameter(name).grad, reference.get_parameter(name).grad
        assert torch.nn.functional.cosine_similarity(ours.flatten(), plain.flatten(), dim=0) > alike, name
    before = losses(model, parity_v)
    second = with_projection(model, other)
    assert not torch.equal(losses(second, parity_v), before) and torch.equal(losses(model, parity_v), before)


def test_merged_adapters_give_the_same_losses(parity_v: Case, model: MiniGPT4) -> None:
    merge_lora(model.llama_model)
    assert not [name for name, _ in model.llama_model.named_parameters() if "lora" in name or "base_layer" in name]
    torch.testing.assert_close(losses(model, parity_v), losses(parity_v.model, parity_v), rtol=1e-5, atol=1e-4)


def test_work_of_adapters_is_counted(parity_v: Case, model: MiniGPT4) -> None:
    plain = build_with(parity_v, ckpt=None, lora=LoraConfig(), arch="minigpt4")
    batch = parity_v.training_batch()
    weights = 3 * 2 * (4 * 64 + 64 * 4)
    added = model.work_meter().of(batch).flops - plain.work_meter().of(batch).flops
    assert added == 6 * weights * sum(batch.lengths)

"""What is trained, how it decays, and that a bad gradient changes nothing."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from minigpt4.common.errors import ConfigError
from minigpt4.common.schema import RunConfig
from minigpt4.runners.optim import OptimizerStep, build_optimizer, parameter_groups, trainable_parameters


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.llama_proj = nn.Linear(768, 4096)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


DECLARED = ("llama_proj.weight", "llama_proj.bias")


def updater(layer: nn.Module, max_grad_norm: float | None = 1.0, scale: bool = False) -> OptimizerStep:
    optimizer = build_optimizer(dict(layer.named_parameters()), RunConfig(weight_decay=0.0))
    return OptimizerStep(optimizer, torch.amp.GradScaler("cpu", enabled=scale), max_grad_norm)


def test_trainable_set_is_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        trainable_parameters(Model(), DECLARED)
    assert "llama_proj.weight [4096, 768] = 3,145,728" in caplog.text
    assert "trainable parameters: 3,149,824 of 3,149,836" in caplog.text


def test_a_part_left_unfrozen_or_frozen_by_mistake_is_an_error() -> None:
    model = Model()
    model.frozen.requires_grad_(True)
    with pytest.raises(ConfigError, match=r"unexpected \['frozen.bias', 'frozen.weight'\]"):
        trainable_parameters(model, DECLARED)
    model = Model()
    model.llama_proj.bias.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"frozen by mistake \['llama_proj.bias'\]"):
        trainable_parameters(model, DECLARED)


def test_only_matrices_decay() -> None:
    layers = nn.ModuleDict({"proj": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})
    decayed, plain = parameter_groups(dict(layers.named_parameters()), 0.05)
    assert [p is layers["proj"].weight for p in decayed["params"]] == [True]
    assert len(plain["params"]) == 3
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)


def test_betas_and_groups_of_the_published_optimizer() -> None:
    optimizer = build_optimizer(dict(Model().llama_proj.named_parameters()), RunConfig())
    assert [group["betas"] for group in optimizer.param_groups] == [(0.9, 0.999)] * 2
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("scale", [False, True])
def test_a_bad_gradient_leaves_weights_and_moments_unchanged(bad: float, scale: bool) -> None:
    layer = nn.Linear(3, 2)
    update = updater(layer, scale=scale)
    update.scaler.scale(layer(torch.ones(1, 3)).sum()).backward()
    update.step(1e-2)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    moments = [{k: v.clone() for k, v in s.items()} for s in update.optimizer.state_dict()["state"].values()]

    update.scaler.scale(layer(torch.tensor([[1.0, bad, 1.0]])).sum()).backward()
    norm, skipped = update.step(1e-2)

    assert skipped and not norm.isfinite()
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    after = update.optimizer.state_dict()["state"].values()
    assert all(torch.equal(now[k], then[k]) for now, then in zip(after, moments, strict=True) for k in then)
    update.scaler.scale(layer(torch.ones(1, 3)).sum()).backward()
    assert not update.step(1e-2)[1]
    assert not torch.equal(layer.weight, before["weight"])


def test_gradients_are_clipped_to_the_norm() -> None:
    torch.manual_seed(0)
    layer, peer = nn.Linear(3, 2), nn.Linear(3, 2)
    peer.load_state_dict(layer.state_dict())
    (layer(torch.ones(1, 3)) * 100).sum().backward()
    norm, _ = updater(layer, max_grad_norm=0.5).step(1e-2)
    (peer(torch.ones(1, 3)) * 100).sum().backward()
    expected = nn.utils.clip_grad_norm_(peer.parameters(), 0.5)
    torch.optim.AdamW(peer.parameters(), lr=1e-2, weight_decay=0.0).step()
    torch.testing.assert_close(norm, expected)
    torch.testing.assert_close(layer.weight, peer.weight)


def test_with_a_loss_scale_the_update_is_the_same() -> None:
    torch.manual_seed(0)
    layer, peer = nn.Linear(3, 2), nn.Linear(3, 2)
    peer.load_state_dict(layer.state_dict())
    for module, scale in ((layer, True), (peer, False)):
        update = updater(module, scale=scale)
        for _ in range(3):
            update.scaler.scale(module(torch.ones(1, 3)).square().sum()).backward()
            update.step(1e-2)
    torch.testing.assert_close(layer.weight, peer.weight)

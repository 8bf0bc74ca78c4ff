"""The plan and the schedules; what is trained, how it decays, and that a bad gradient changes nothing."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from minigpt4.common.errors import CheckpointError, ConfigError
from minigpt4.common.registry import schedules
from minigpt4.common.schema import RunConfig
from minigpt4.runners.optim import (
    LrSettings,
    OptimizerStep,
    build_optimizer,
    build_optimizer_step,
    linear_warmup_cosine_lr,
    linear_warmup_step_lr,
    make_plan,
    parameter_groups,
    share_global_batch,
    trainable_parameters,
)

TABLES = Path(__file__).parents[1] / "fixtures" / "lr_schedule.npz"
FLICKR = LrSettings.of(RunConfig(), steps_per_epoch=500)
LONG_WARMUP = LrSettings(
    init_lr=3e-5, min_lr=1e-5, warmup_lr=1e-6, warmup_steps=250, total_steps=400, steps_per_epoch=100
)
STEPS = LrSettings(
    init_lr=1e-4, min_lr=2e-5, warmup_lr=1e-6, warmup_steps=20, total_steps=200, steps_per_epoch=50, decay_rate=0.5
)


@pytest.mark.parametrize(
    ("table", "schedule", "settings"),
    [
        ("cosine", linear_warmup_cosine_lr, FLICKR),
        ("step", linear_warmup_step_lr, STEPS),
    ],
)
def test_every_step_of_the_original_tables(table, schedule, settings) -> None:
    expected = np.load(TABLES)[table]
    rates = [schedule(step, settings) for step in range(settings.total_steps)]
    np.testing.assert_allclose(rates, expected, rtol=1e-12)


def test_warmup_longer_than_an_epoch_has_no_saw_tooth() -> None:
    """The original counted warm-up within the epoch: the tables agree in the first epoch and after warm-up."""
    expected = np.load(TABLES)["cosine_warmup_longer_than_epoch"]
    rates = np.array([linear_warmup_cosine_lr(step, LONG_WARMUP) for step in range(400)])
    np.testing.assert_allclose(rates[:100], expected[:100], rtol=1e-12)
    np.testing.assert_allclose(rates[250:], expected[250:], rtol=1e-12)
    assert (np.diff(rates[:250]) > 0).all()
    assert rates[100] > expected[100]


def test_key_values_of_the_flickr_recipe() -> None:
    assert linear_warmup_cosine_lr(0, FLICKR) == 1e-6
    assert linear_warmup_cosine_lr(100, FLICKR) == pytest.approx(1.55e-5)
    assert linear_warmup_cosine_lr(200, FLICKR) == pytest.approx(2.9685831611286e-05)
    assert linear_warmup_cosine_lr(1250, FLICKR) == pytest.approx(2e-5)
    assert linear_warmup_cosine_lr(2500, FLICKR) == pytest.approx(1e-5)


def test_schedules_are_found_by_name() -> None:
    assert schedules.get("linear_warmup_cosine_lr") is linear_warmup_cosine_lr
    assert schedules.get("linear_warmup_step_lr") is linear_warmup_step_lr


@pytest.mark.parametrize(("warmup_steps", "warned"), [(19, False), (20, True)])
def test_a_run_that_is_all_warmup_is_warned_of(
    warmup_steps: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING"):
        plan = make_plan(RunConfig(max_epoch=2, batch_size=3, accum_grad_iters=4, warmup_steps=warmup_steps), 10, 2)
    assert (plan.total_steps, plan.global_batch) == (20, 24)
    assert ("never reaches 3e-05; shorten it, for example by --options run.warmup_steps=2" in caplog.text) == warned


@pytest.mark.parametrize(
    ("total", "size", "world_size", "accumulation"), [(None, 8, 3, 5), (8, 8, 1, 1), (48, 8, 1, 6), (48, 8, 3, 2)]
)
def test_a_global_batch_is_shared(total: int | None, size: int, world_size: int, accumulation: int) -> None:
    run = RunConfig(batch_size=size, global_batch=total)
    if total is None:
        run.accum_grad_iters = accumulation
    shared = share_global_batch(run, world_size)
    assert (shared.batch_size, shared.accum_grad_iters) == (size, accumulation)
    assert total is None or make_plan(shared, 10, world_size).global_batch == total


@pytest.mark.parametrize(
    ("total", "size", "world_size", "advice"),
    [
        (20, 8, 1, r"set run\.batch_size to 1, 2, 4 or 5, or run\.global_batch to 16 or 24"),
        (4, 8, 2, r"set run\.batch_size to 1, 2 or 4, or run\.global_batch to 8"),
        (
            24,
            4,
            4,
            r"24 samples are 6 micro-batches .* 4 processes cannot share equally; start 1, 2, 3 or 6 processes, "
            r"set run\.batch_size to 1, 2 or 3, or set run\.global_batch to 32",
        ),
        (16, 8, 3, r"start 1 or 2 processes, or set run\.global_batch to 24"),
    ],
)
def test_a_global_batch_that_cannot_be_shared_names_what_can(
    total: int, size: int, world_size: int, advice: str
) -> None:
    with pytest.raises(ConfigError, match=advice):
        share_global_batch(RunConfig(batch_size=size, global_batch=total), world_size)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.llama_proj = nn.Linear(768, 4096)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


DECLARED = ("llama_proj.weight", "llama_proj.bias")


def optimizer_step(layer: nn.Module, max_grad_norm: float | None = 1.0, scale: bool = False) -> OptimizerStep:
    run = RunConfig(weight_decay=0.0, max_grad_norm=max_grad_norm)
    return build_optimizer_step(dict(layer.named_parameters()), run, torch.device("cpu"), scale_loss=scale)


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
    optimizer = optimizer_step(layer, scale=scale)
    optimizer.scaler.scale(layer(torch.ones(1, 3)).sum()).backward()
    optimizer.step(1e-2)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    moments = [{k: v.clone() for k, v in s.items()} for s in optimizer.optimizer.state_dict()["state"].values()]

    optimizer.scaler.scale(layer(torch.tensor([[1.0, bad, 1.0]])).sum()).backward()
    norm, skipped = optimizer.step(1e-2)

    assert skipped and not norm.isfinite()
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    after = optimizer.optimizer.state_dict()["state"].values()
    assert all(torch.equal(now[k], then[k]) for now, then in zip(after, moments, strict=True) for k in then)
    optimizer.scaler.scale(layer(torch.ones(1, 3)).sum()).backward()
    assert not optimizer.step(1e-2)[1]
    assert not torch.equal(layer.weight, before["weight"])


@pytest.mark.parametrize("scale", [False, True])
def test_an_update_that_overflows_is_noticed(scale: bool) -> None:
    layer = nn.Linear(3, 2)
    optimizer = optimizer_step(layer, scale=scale)
    assert optimizer.finite()
    for lr, finite in ((1e-2, True), (1e20, True), (1e39, False)):
        optimizer.scaler.scale(layer(torch.ones(1, 3)).sum()).backward()
        assert not optimizer.step(lr)[1]
        assert bool(optimizer.finite()) == finite
    assert not torch.isfinite(layer.weight).all()


def test_moments_that_overflowed_are_noticed() -> None:
    layer = nn.Linear(3, 2)
    optimizer = optimizer_step(layer)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step(1e-2)
    optimizer.optimizer.state[layer.bias]["exp_avg_sq"][0] = float("inf")
    assert not optimizer.finite()


def test_gradients_are_clipped_to_the_norm() -> None:
    torch.manual_seed(0)
    layer, peer = nn.Linear(3, 2), nn.Linear(3, 2)
    peer.load_state_dict(layer.state_dict())
    (layer(torch.ones(1, 3)) * 100).sum().backward()
    norm, _ = optimizer_step(layer, max_grad_norm=0.5).step(1e-2)
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
        optimizer = optimizer_step(module, scale=scale)
        for _ in range(3):
            optimizer.scaler.scale(module(torch.ones(1, 3)).square().sum()).backward()
            optimizer.step(1e-2)
    torch.testing.assert_close(layer.weight, peer.weight)


def test_the_state_of_other_parameters_is_refused() -> None:
    content = optimizer_step(nn.Linear(3, 2)).state()
    assert content["scaler"] is None
    with pytest.raises(CheckpointError, match=r"checkpoint_0\.pth: its optimizer state is of other parameters"):
        optimizer_step(nn.Linear(3, 2, bias=False)).restore(content, Path("checkpoint_0.pth"))

"""Steps of a run, its learning rate at each of them, and its optimizer."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minigpt4.common.errors import CheckpointError, ConfigError, counted
from minigpt4.common.registry import schedules
from minigpt4.common.schema import RunConfig

logger = logging.getLogger(__name__)

BETA1 = 0.9
"""AdamW's first moment, as in the published runs."""
NOT_DECAYED = re.compile(r"(^|\.)(bias|ln|norm|layernorm|ln_\w+)(\.|$)", re.IGNORECASE)
"""Names of parameters without weight decay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Steps and batch sizes of a run.

    Attributes:
        max_epoch: epochs.
        steps_per_epoch: optimizer steps of an epoch.
        batch_size: samples of a micro-batch on each rank.
        accumulation: micro-batches of an optimizer step on each rank.
        world_size: number of ranks.
    """

    max_epoch: int
    steps_per_epoch: int
    batch_size: int
    accumulation: int
    world_size: int

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.max_epoch * self.steps_per_epoch

    @property
    def global_batch(self) -> int:
        """Samples of an optimizer step."""
        return self.batch_size * self.accumulation * self.world_size

    @property
    def factors(self) -> str:
        """How the global batch is made up, for tables and logs."""
        processes = counted(self.world_size, "processes")
        return f"{self.batch_size} per micro-batch x {self.accumulation} accumulated x {processes}"


def share_global_batch(run: RunConfig, world_size: int) -> RunConfig:
    """`run` with the `accum_grad_iters` that makes `run.global_batch`, where that is set.

    Args:
        run: section `run` of the configuration.
        world_size: number of ranks.

    Raises:
        ConfigError: The ranks cannot have equal numbers of whole micro-batches.
    """
    total, size = run.global_batch, run.batch_size
    if total is None:
        return run
    if total % size:
        near = [batch for batch in (total // size * size, (total // size + 1) * size) if batch]
        raise ConfigError(
            f"run.global_batch: {total} samples are no whole number of micro-batches of run.batch_size={size}; set "
            f"run.batch_size to {_one_of(_divisors(total, size))}, or run.global_batch to {_one_of(near)}"
        )
    micro_batches = total // size
    if micro_batches % world_size:
        processes, sizes = _divisors(micro_batches, 2 * world_size), _divisors(total // world_size, size)
        smaller = "" if total % world_size else f", set run.batch_size to {_one_of(sizes)}"
        raise ConfigError(
            f"run.global_batch: {total} samples are {micro_batches} micro-batches of run.batch_size={size}, which "
            f"{world_size} processes cannot share equally; start {_one_of(processes)} processes{smaller}, or set "
            f"run.global_batch to {(micro_batches // world_size + 1) * world_size * size}"
        )
    return replace(run, accum_grad_iters=micro_batches // world_size)


def _divisors(number: int, largest: int) -> list[int]:
    return [divisor for divisor in range(1, min(number, largest) + 1) if number % divisor == 0]


def _one_of(numbers: Sequence[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} or {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])


def make_plan(run: RunConfig, steps_per_epoch: int, world_size: int) -> Plan:
    """The plan of a run, whose batch sizes are logged; warns where the learning rate never reaches its peak.

    Args:
        run: section `run` of the configuration.
        steps_per_epoch: optimizer steps of an epoch.
        world_size: number of ranks.
    """
    plan = Plan(
        max_epoch=run.max_epoch,
        steps_per_epoch=steps_per_epoch,
        batch_size=run.batch_size,
        accumulation=run.accum_grad_iters,
        world_size=world_size,
    )
    logger.info("global batch: %d (%s)", plan.global_batch, plan.factors)
    if run.warmup_steps >= plan.total_steps:
        logger.warning(
            "the run has %d steps, all of them warm-up (run.warmup_steps: %d): the learning rate never reaches %g; "
            "shorten it, for example by --options run.warmup_steps=%d",
            plan.total_steps,
            run.warmup_steps,
            run.init_lr,
            plan.total_steps // 10,
        )
    return plan


@dataclass(frozen=True, slots=True, kw_only=True)
class LrSettings:
    """Parameters of a learning-rate schedule.

    Attributes:
        init_lr: peak.
        min_lr: floor.
        warmup_lr: learning rate at step 0.
        warmup_steps: optimizer steps of warm-up, counted from the beginning of the run.
        total_steps: optimizer steps of the run.
        steps_per_epoch: optimizer steps of an epoch.
        decay_rate: factor of each epoch (step schedule).
    """

    init_lr: float
    min_lr: float
    warmup_lr: float
    warmup_steps: int
    total_steps: int
    steps_per_epoch: int
    decay_rate: float = 1.0

    @classmethod
    def of(cls, run: RunConfig, steps_per_epoch: int) -> LrSettings:
        """Settings from the section `run` of a configuration."""
        return cls(
            init_lr=run.init_lr,
            min_lr=run.min_lr,
            warmup_lr=run.warmup_lr,
            warmup_steps=run.warmup_steps,
            total_steps=run.max_epoch * steps_per_epoch,
            steps_per_epoch=steps_per_epoch,
            decay_rate=run.lr_decay_rate,
        )


@schedules.register("linear_warmup_cosine_lr")
def linear_warmup_cosine_lr(step: int, settings: LrSettings) -> float:
    """Linear warm-up, then half a cosine down to the floor.

    The cosine runs over all steps, warm-up included, so it is met a little below its start
    (LAVIS, `lavis/common/optims.py`, `LinearWarmupCosineLRScheduler`).

    Args:
        step: optimizer steps done before this one.
        settings: settings of the run.
    """
    if step < settings.warmup_steps:
        return _warmup(step, settings)
    cosine = 1.0 + math.cos(math.pi * step / settings.total_steps)
    return (settings.init_lr - settings.min_lr) * 0.5 * cosine + settings.min_lr


@schedules.register("linear_warmup_step_lr")
def linear_warmup_step_lr(step: int, settings: LrSettings) -> float:
    """Linear warm-up, then the peak times decay_rate for each epoch done, never below the floor.

    After LAVIS's `LinearWarmupStepLRScheduler`. Arguments as for `linear_warmup_cosine_lr`.
    """
    if step < settings.warmup_steps:
        return _warmup(step, settings)
    epoch = step // settings.steps_per_epoch
    return max(settings.min_lr, settings.init_lr * settings.decay_rate**epoch)


def _warmup(step: int, settings: LrSettings) -> float:
    return settings.warmup_lr + (settings.init_lr - settings.warmup_lr) * step / settings.warmup_steps


def trainable_parameters(model: nn.Module, declared: Iterable[str]) -> dict[str, nn.Parameter]:
    """The trainable parameters of a model, logged by name and shape and compared with what the model declares.

    Args:
        model: the model.
        declared: names of all parameters that must be trainable.

    Raises:
        ConfigError: Another parameter is trainable, or a declared one is not.
    """
    found = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    expected = set(declared)
    if set(found) != expected:
        unexpected, frozen = sorted(set(found) - expected), sorted(expected - set(found))
        raise ConfigError(
            "the trainable set is not what the model declares: "
            f"unexpected {unexpected or 'nothing'}, frozen by mistake {frozen or 'nothing'}"
        )
    # Adapters of 32 blocks are many lines, which tell nothing that one of them does not.
    alike: dict[tuple[str, torch.Size], list[nn.Parameter]] = {}
    for name, parameter in found.items():
        alike.setdefault((re.sub(r"\.\d+\.", ".*.", name), parameter.shape), []).append(parameter)
    for (name, shape), group in alike.items():
        times = f" x {len(group)}" if len(group) > 1 else ""
        logger.info("trainable: %s %s%s = %s", name, list(shape), times, f"{sum(p.numel() for p in group):,}")
    total, everything = (sum(p.numel() for p in group) for group in (found.values(), model.parameters()))
    logger.info("trainable parameters: %s of %s", f"{total:,}", f"{everything:,}")
    return found


def build_optimizer_step(
    parameters: Mapping[str, nn.Parameter], run: RunConfig, device: torch.device, *, scale_loss: bool
) -> OptimizerStep:
    """Optimizer, loss scale and clipping of a run.

    Args:
        parameters: names -> trainable parameters.
        run: section `run` of the configuration.
        device: device of this rank.
        scale_loss: use a loss scale, because gradients pass through float16.
    """
    scaler = torch.amp.GradScaler(device.type, enabled=scale_loss)
    return OptimizerStep(build_optimizer(parameters, run), scaler, run.max_grad_norm)


def build_optimizer(parameters: Mapping[str, nn.Parameter], run: RunConfig) -> torch.optim.AdamW:
    """AdamW as the published runs used it; fused, because only that skips an update without waiting for the device."""
    groups = parameter_groups(parameters, run.weight_decay)
    return torch.optim.AdamW(groups, lr=run.init_lr, betas=(BETA1, run.beta2), fused=True)


def parameter_groups(parameters: Mapping[str, nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices, which decay, and biases and norms, which do not; empty groups are left out."""
    plain = [name for name, p in parameters.items() if p.ndim < 2 or NOT_DECAYED.search(name)]
    decayed = [name for name in parameters if name not in plain]
    groups = [
        {"params": [parameters[name] for name in decayed], "weight_decay": weight_decay},
        {"params": [parameters[name] for name in plain], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class OptimizerStep:
    """One optimizer step from accumulated gradients, without waiting for the device.

    Args:
        optimizer: AdamW, fused.
        scaler: loss scale; disabled where gradients do not pass through float16.
        max_grad_norm: gradients are clipped to this norm; None: not clipped.
    """

    def __init__(self, optimizer: torch.optim.AdamW, scaler: torch.amp.GradScaler, max_grad_norm: float | None) -> None:
        self.optimizer = optimizer
        self.scaler = scaler
        self.max_grad_norm = max_grad_norm
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def step(self, lr: float) -> tuple[Tensor, Tensor]:
        """Update the weights and drop the gradients.

        Where a gradient is not finite, weights and moments stay as they are.

        Args:
            lr: learning rate of this step.

        Returns:
            The gradient's norm before clipping, and whether the update was skipped: scalars on the device.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self._parameters, self.max_grad_norm, norm)
        skipped = ~torch.isfinite(norm)
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm, skipped

    @torch.no_grad()
    def finite(self) -> Tensor:
        """Whether weights and moments are finite: a scalar on the device."""
        moments = [t for p in self._parameters for t in self.optimizer.state.get(p, {}).values()]
        # The largest value, because squares of finite values can overflow.
        return torch.isfinite(nn.utils.get_total_norm([*self._parameters, *moments], norm_type=math.inf))

    def state(self) -> dict[str, Any]:
        """The entries "optimizer" and "scaler" of a checkpoint; the second is None without a loss scale."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler.is_enabled() else None,
        }

    def restore(self, content: Mapping[str, Any], path: Path) -> None:
        """Restore the moments and the loss scale from a checkpoint.

        Args:
            content: content of the checkpoint.
            path: path of the checkpoint, for messages.

        Raises:
            CheckpointError: They belong to other parameters.
        """
        try:
            self.optimizer.load_state_dict(content["optimizer"])
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"{path}: its optimizer state is of other parameters: {error}") from error
        # A run without a loss scale leaves nothing to restore; one that needs it starts with a fresh one.
        if self.scaler.is_enabled() and content["scaler"]:
            self.scaler.load_state_dict(content["scaler"])

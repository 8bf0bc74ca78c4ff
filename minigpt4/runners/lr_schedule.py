"""Learning rate by global optimizer step: pure functions, so that a resumed run goes on exactly where it was."""

from __future__ import annotations

import math
from dataclasses import dataclass

from minigpt4.common.registry import schedules
from minigpt4.common.schema import RunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LrSettings:
    """What a schedule depends on.

    Attributes:
        init_lr: The peak.
        min_lr: The floor.
        warmup_lr: Where warm-up starts; negative: there is none below the peak.
        warmup_steps: Optimizer steps of warm-up, counted over the whole run.
        total_steps: Optimizer steps of the run.
        steps_per_epoch: Optimizer steps of an epoch.
        decay_rate: Factor an epoch (step schedule).
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
        """The settings of a configuration."""
        return cls(
            init_lr=run.init_lr,
            min_lr=run.min_lr,
            warmup_lr=run.warmup_lr,
            warmup_steps=run.warmup_steps,
            total_steps=run.max_epoch * steps_per_epoch,
            steps_per_epoch=steps_per_epoch,
            decay_rate=run.lr_decay_rate,
        )


def _warmup(step: int, settings: LrSettings) -> float:
    start = settings.warmup_lr if settings.warmup_lr >= 0 else settings.init_lr
    return start + (settings.init_lr - start) * step / settings.warmup_steps


@schedules.register("linear_warmup_cosine_lr")
def linear_warmup_cosine_lr(step: int, settings: LrSettings) -> float:
    """Linear warm-up, then half a cosine down to the floor.

    The cosine runs over the whole training, warm-up included, so it is met a little below its start
    (LAVIS, `lavis/common/optims.py`, `LinearWarmupCosineLRScheduler`).

    Args:
        step: Optimizer steps done before this one.
        settings: Of the run.
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

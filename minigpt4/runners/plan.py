"""How long a run is and how large its steps are."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from minigpt4.common.errors import ConfigError
from minigpt4.common.schema import RunConfig

logger = logging.getLogger(__name__)
AT_LEAST_ONE = ("group_by_length", "max_epoch", "iters_per_epoch", "accum_grad_iters", "log_freq", "save_freq")
NOT_NEGATIVE = ("init_lr", "min_lr", "warmup_steps", "weight_decay", "num_workers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The sizes of a run.

    Attributes:
        max_epoch: Epochs.
        steps_per_epoch: Optimizer steps of each.
        batch_size: Samples a process and micro-batch.
        accumulation: Micro-batches an optimizer step.
        world_size: Processes.
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
        """Samples an optimizer step."""
        return self.batch_size * self.accumulation * self.world_size


def warn_of_long_warmup(plan: Plan, run: RunConfig) -> None:
    """Say so where the learning rate never reaches its peak."""
    if run.warmup_steps >= plan.total_steps:
        logger.warning(
            "the run has %d steps, all of them warm-up (run.warmup_steps: %d): the learning rate never reaches %g",
            plan.total_steps,
            run.warmup_steps,
            run.init_lr,
        )


def check_run(run: RunConfig) -> None:
    """Refuse numbers that make no run.

    Raises:
        ConfigError: The message names the key.
    """
    for name in AT_LEAST_ONE:
        value = getattr(run, name)
        if value is not None and value < 1:
            raise ConfigError(f"run.{name}: {value} should be at least 1")
    for name in NOT_NEGATIVE:
        if getattr(run, name) < 0:
            raise ConfigError(f"run.{name}: {getattr(run, name)} should not be negative")
    if run.max_grad_norm is not None and run.max_grad_norm <= 0:
        raise ConfigError(f"run.max_grad_norm: {run.max_grad_norm} should be above 0, or null for no clipping")
    if not 0 <= run.beta2 < 1:
        raise ConfigError(f"run.beta2: {run.beta2} should be at least 0 and below 1")

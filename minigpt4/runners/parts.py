"""Everything that a run is assembled from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt4.common.dist import Processes
from minigpt4.common.parallel import SharedGradients
from minigpt4.common.schema import RunConfig
from minigpt4.common.types import Batch
from minigpt4.runners.optimizer import Updater
from minigpt4.runners.plan import Plan
from minigpt4.runners.trackers import Trackers
from minigpt4.tasks import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class RunParts:
    """What a runner is given, built beforehand and in plain sight.

    Attributes:
        run: Its part of the configuration.
        resolved: The whole configuration in plain form, for checkpoints.
        identity: What else makes it this run and no other (`run_identity`).
        plan: Its sizes.
        processes: That share the work.
        model: With `trainable_state`, `metadata` and `encoder`; its trainable parts wrapped in `shared`.
        shared: Adds up gradients over the processes.
        task: Says what a step and a validation are.
        updater: Optimizer, loss scale and clipping.
        schedule: Global optimizer step -> learning rate.
        train_batches: First optimizer step -> this process's micro-batches from there to the end of the run.
        valid_batches: This process's share of the validation split; None: there is none.
        folder: The run folder.
        trackers: Where curves are sent.
        peak: FLOP/s that the devices of all processes reach together in a large matrix product.
    """

    run: RunConfig
    resolved: Mapping[str, Any]
    identity: Mapping[str, Any]
    plan: Plan
    processes: Processes
    model: Any
    shared: SharedGradients
    task: Task
    updater: Updater
    schedule: Callable[[int], float]
    train_batches: Callable[[int], Iterable[Batch]]
    valid_batches: Iterable[Batch] | None
    folder: Path
    trackers: Trackers
    peak: float

"""What a run must remember to go on bit for bit, and its form in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from minigpt4.common.dist import Processes
from minigpt4.runners.meters import EpochMeter
from minigpt4.runners.parts import RunParts
from minigpt4.runners.rng import rng_state, seed_all, set_rng_state


@dataclass(slots=True)
class TrainState:
    """Where a run stands, beyond weights and optimizer.

    Attributes:
        step: Optimizer steps done; the schedule and the sampler depend on nothing else.
        best_val_loss: Lowest so far; None: not measured yet.
        best_epoch: The epoch it was reached in.
        skipped_in_a_row: Updates left out just before because gradients were not finite.
        meter: Running sums of the epoch under way.
    """

    step: int = 0
    best_val_loss: float | None = None
    best_epoch: int | None = None
    skipped_in_a_row: int = 0
    meter: EpochMeter = field(default_factory=EpochMeter)

    def is_best(self, val_loss: float | None, epoch: int) -> bool:
        """Whether this epoch is the best so far, which is then remembered. A loss that is not a number never is."""
        if val_loss is None or val_loss != val_loss:
            return False
        if self.best_val_loss is not None and val_loss >= self.best_val_loss:
            return False
        self.best_val_loss, self.best_epoch = val_loss, epoch
        return True

    def content(self, processes: Processes) -> dict[str, Any]:
        """The entries "step", "rng" and "progress" of a checkpoint; every process must call it."""
        own: dict[str, Any] = {"rng": rng_state(), "skipped_images": self.meter.skipped_images}
        everyone = processes.gather(own)
        progress = {
            "best_val_loss": self.best_val_loss,
            "best_epoch": self.best_epoch,
            "skipped_in_a_row": self.skipped_in_a_row,
            "meter": self.meter.state_dict() | {"skipped_images": sum(one["skipped_images"] for one in everyone)},
        }
        return {"step": self.step, "rng": [one["rng"] for one in everyone], "progress": progress}

    def restore(self, content: Mapping[str, Any], processes: Processes, seed: int) -> None:
        """Take the state of a checkpoint; a process that did not exist when it was written is seeded anew."""
        progress = content["progress"]
        self.step = content["step"]
        self.best_val_loss = progress["best_val_loss"]
        self.best_epoch = progress["best_epoch"]
        self.skipped_in_a_row = progress["skipped_in_a_row"]
        self.meter.load_state_dict(progress["meter"])
        if not processes.is_main:
            self.meter.skipped_images = 0  # the main process carries the sum on
        if processes.rank < len(content["rng"]):
            set_rng_state(content["rng"][processes.rank])
        else:
            seed_all(seed + processes.rank)


def checkpoint_content(parts: RunParts, state: TrainState, epoch: int, val_loss: float | None = None) -> dict[str, Any]:
    """A whole checkpoint, in the published layout with what a resumed run needs added; every process must call it.

    Args:
        parts: Of the run.
        state: Where it stands.
        epoch: The one under way, or just done.
        val_loss: Measured after it.
    """
    with parts.shared.unwrapped():
        model = {name: tensor.clone() for name, tensor in parts.model.trainable_state().items()}
    metadata = dict(parts.model.metadata()) | {"epoch": str(epoch), "step": str(state.step)}
    if val_loss is not None:
        metadata["val_loss"] = repr(val_loss)
    scaler = parts.updater.scaler
    return {
        "model": model,
        "optimizer": parts.updater.optimizer.state_dict(),
        "config": dict(parts.resolved),
        "scaler": scaler.state_dict() if scaler.is_enabled() else None,
        "epoch": epoch,
        "metadata": metadata,
        "run": dict(parts.identity),
        **state.content(parts.processes),
    }

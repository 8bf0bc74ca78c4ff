"""What one training step and one validation mean."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minigpt4.common.distributed import GradientSum, Processes
from minigpt4.common.logging import track
from minigpt4.common.registry import tasks
from minigpt4.common.types import Batch


@dataclass(frozen=True, slots=True)
class StepLoss:
    """The loss of one optimizer step, on the device.

    Attributes:
        local_sum: sum over the target tokens of this rank, float64 scalar.
        targets: target tokens of all ranks and micro-batches, float32 scalar.
    """

    local_sum: Tensor
    targets: Tensor


@dataclass(frozen=True, slots=True)
class Validation:
    """The result of a validation.

    Attributes:
        loss: mean over all target tokens of the split.
        targets: target tokens.
        samples: samples, all ranks together.
    """

    loss: float
    targets: int
    samples: int


class Task(ABC):
    """A training objective; subclasses define the loss of a batch."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sum over the batch's target tokens, float32 scalar."""

    def train_step(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        seeds: Sequence[int],
        gradients: GradientSum,
        processes: Processes,
        scaler: torch.amp.GradScaler,
    ) -> StepLoss:
        """Compute gradients of the mean loss over the target tokens of the global batch.

        Each target token weighs the same, however the samples are divided among ranks and micro-batches, and random
        numbers belong to the micro-batch: neither depends on the number of ranks. Nothing here waits for the device.

        Args:
            model: model in training mode.
            batches: micro-batches of this rank, on the CPU.
            seeds: seed of torch's random generators (dropout) for each micro-batch.
            gradients: adds the gradients of all micro-batches.
            processes: ranks of the run.
            scaler: scales the loss before the backward pass.
        """
        device = processes.device
        # Filled on the device, because copying a number there from pageable memory would wait for it.
        targets = torch.full((), float(sum(batch.num_targets for batch in batches)), device=device)
        targets = processes.sum(targets)
        weight = 1.0 / targets.clamp(min=1.0)
        local_sum = torch.zeros((), dtype=torch.float64, device=device)
        gradients.start()
        for batch, seed in zip(batches, seeds, strict=True):
            torch.manual_seed(seed)
            loss = self.loss(model, batch.to(device))
            scaler.scale(loss * weight).backward()
            gradients.end_slot()
            local_sum += loss.detach()
        gradients.finish()
        return StepLoss(local_sum, targets)

    @torch.no_grad()
    def validate(self, model: nn.Module, batches: Collection[Batch], processes: Processes) -> Validation:
        """Mean loss over the target tokens of all batches of all ranks; shares may be unequal, or empty.

        Args:
            model: the model; it is left in eval mode.
            batches: share of this rank.
            processes: ranks of the run.
        """
        model.eval()
        losses: list[Tensor] = []
        targets, samples = 0, 0
        shares = processes.gather(len(batches))
        spare = processes.run_on_main(lambda: next(iter(batches))) if min(shares) == 0 < max(shares) else None
        for batch in track(batches, "validation", "batches"):
            losses.append(self.loss(model, batch.to(processes.device)))
            targets += batch.num_targets
            samples += len(batch.image_ids)
            spare = batch
        # A language model that is sharded among the ranks computes only where all of them do.
        for _ in range(max(shares) - len(batches)):
            assert spare is not None
            self.loss(model, spare.to(processes.device))
        parts = processes.gather((torch.stack(losses).tolist() if losses else [], targets, samples))
        # fsum rounds once, so that the order, and with it the number of ranks, does not matter.
        loss, targets = math.fsum(value for part in parts for value in part[0]), sum(part[1] for part in parts)
        return Validation(loss=loss / max(targets, 1), targets=targets, samples=sum(part[2] for part in parts))


@tasks.register("image_text_pretrain")
class ImageTextPretrain(Task):
    """Next-token loss on the answer, for both stages and for fine-tuning."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sum of the negative log-likelihood of the batch's target tokens."""
        loss: Tensor = model(batch)
        return loss

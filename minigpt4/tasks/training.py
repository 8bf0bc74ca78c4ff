"""What one training step and one validation mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minigpt4.common.distributed import Processes, SharedGradients
from minigpt4.common.progress import track
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
        gradients: SharedGradients,
        processes: Processes,
        scaler: torch.amp.GradScaler,
    ) -> StepLoss:
        """Compute gradients of the mean loss over the target tokens of the global batch.

        Each target token weighs the same, however the samples are divided among ranks and micro-batches.
        Nothing here waits for the device.

        Args:
            model: model in training mode.
            batches: micro-batches of this rank, on the CPU.
            gradients: sums the gradients of the ranks.
            processes: ranks of the run.
            scaler: scales the loss before the backward pass.
        """
        device = processes.device
        # Filled on the device, because copying a number there from pageable memory would wait for it.
        targets = torch.full((), float(sum(batch.num_targets for batch in batches)), device=device)
        targets = processes.sum(targets)
        # DDP averages the gradients of the ranks where their sum is wanted.
        weight = processes.world_size / targets.clamp(min=1.0)
        local_sum = torch.zeros((), dtype=torch.float64, device=device)
        for number, batch in enumerate(batches, 1):
            with nullcontext() if number == len(batches) else gradients.no_sync():
                loss = self.loss(model, batch.to(device))
                scaler.scale(loss * weight).backward()
            local_sum += loss.detach()
        return StepLoss(local_sum, targets)

    @torch.no_grad()
    def validate(self, model: nn.Module, batches: Collection[Batch], processes: Processes) -> Validation:
        """Mean loss over the target tokens of all batches of all ranks; shares may be unequal, or empty.

        Args:
            model: model without DDP's wrappers; it is left in eval mode.
            batches: share of this rank.
            processes: ranks of the run.
        """
        model.eval()
        total = torch.zeros(3, dtype=torch.float64, device=processes.device)
        shares = processes.gather(len(batches))
        spare = processes.run_on_main(lambda: next(iter(batches))) if min(shares) == 0 < max(shares) else None
        for batch in track(batches, "validation", "batches"):
            total[0] += self.loss(model, batch.to(processes.device))
            total[1] += batch.num_targets
            total[2] += len(batch.image_ids)
            spare = batch
        # A language model that is sharded among the ranks computes only where all of them do.
        for _ in range(max(shares) - len(batches)):
            assert spare is not None
            self.loss(model, spare.to(processes.device))
        loss, targets, samples = processes.sum(total).tolist()
        return Validation(loss=loss / max(targets, 1.0), targets=int(targets), samples=int(samples))


@tasks.register("image_text_pretrain")
class ImageTextPretrain(Task):
    """Next-token loss on the answer, for both stages and for fine-tuning."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sum of the negative log-likelihood of the batch's target tokens."""
        loss: Tensor = model(batch)
        return loss

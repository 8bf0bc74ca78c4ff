"""What one training step and one validation mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minigpt4.common.distributed import Processes, SharedGradients
from minigpt4.common.registry import tasks
from minigpt4.common.types import Batch


@dataclass(frozen=True, slots=True)
class StepLoss:
    """The loss of one optimizer step, on the device.

    Attributes:
        local_sum: Sum over this process's target tokens, float64 scalar.
        targets: Target tokens of all processes and micro-batches, float32 scalar.
    """

    local_sum: Tensor
    targets: Tensor


@dataclass(frozen=True, slots=True)
class Validation:
    """The result of a validation.

    Attributes:
        loss: Mean over all target tokens of the split.
        targets: How many there are.
        samples: Samples seen, all processes together.
    """

    loss: float
    targets: int
    samples: int


class Task(ABC):
    """A training objective; subclasses say what the loss of a batch is."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sum over the batch's target tokens, float32 scalar."""

    def train_step(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        shared: SharedGradients,
        processes: Processes,
        scaler: torch.amp.GradScaler,
    ) -> StepLoss:
        """Gradients of the mean loss over the target tokens of the whole global batch.

        However the samples are divided among processes and micro-batches, each target token weighs the same.
        Nothing here waits for the device.

        Args:
            model: In training mode.
            batches: This process's micro-batches of the step, on the CPU.
            shared: Adds up the gradients of the processes.
            processes: Of the run.
            scaler: Scales the loss before backward.
        """
        device = processes.device
        # Filled on the device, because copying a number there from pageable memory would wait for it.
        targets = torch.full((), float(sum(batch.num_targets for batch in batches)), device=device)
        targets = processes.sum(targets)
        # DDP averages the gradients of the processes where their sum is wanted.
        weight = processes.world_size / targets.clamp(min=1.0)
        local_sum = torch.zeros((), dtype=torch.float64, device=device)
        for number, batch in enumerate(batches, 1):
            with nullcontext() if number == len(batches) else shared.no_sync():
                loss = self.loss(model, batch.to(device))
                scaler.scale(loss * weight).backward()
            local_sum += loss.detach()
        return StepLoss(local_sum, targets)

    @torch.no_grad()
    def validate(self, model: nn.Module, batches: Collection[Batch], processes: Processes) -> Validation:
        """Mean loss over the target tokens of all batches of all processes; shares may be unequal, or empty.

        Args:
            model: Without DDP's wrappers; left in eval mode.
            batches: This process's share.
            processes: Of the run.
        """
        model.eval()
        total = torch.zeros(3, dtype=torch.float64, device=processes.device)
        shares = processes.gather(len(batches))
        spare = processes.run_on_main(lambda: next(iter(batches))) if min(shares) == 0 < max(shares) else None
        for batch in batches:
            total[0] += self.loss(model, batch.to(processes.device))
            total[1] += batch.num_targets
            total[2] += len(batch.image_ids)
            spare = batch
        # A language model divided among the processes computes only where all of them do.
        for _ in range(max(shares) - len(batches)):
            assert spare is not None
            self.loss(model, spare.to(processes.device))
        loss, targets, samples = processes.sum(total).tolist()
        return Validation(loss=loss / max(targets, 1.0), targets=int(targets), samples=int(samples))


@tasks.register("image_text_pretrain")
class ImageTextPretrain(Task):
    """Next-token loss on the answer; for both stages and for fine-tuning."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sum of the negative log-likelihood of the batch's target tokens."""
        loss: Tensor = model(batch)
        return loss

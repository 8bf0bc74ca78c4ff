"""Learning to answer with a text, given a picture and an instruction."""

from __future__ import annotations

from torch import Tensor, nn

from minigpt4.common.registry import tasks
from minigpt4.common.types import Batch
from minigpt4.tasks.base import Task


@tasks.register("image_text_pretrain")
class ImageTextPretrain(Task):
    """Next-token loss on the answer; for both stages and for fine-tuning."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sum of the negative log-likelihood of the batch's target tokens."""
        loss: Tensor = model(batch)
        return loss

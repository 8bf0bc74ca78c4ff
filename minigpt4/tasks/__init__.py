"""What one training step and one validation mean."""

from minigpt4.tasks.base import StepLoss, Task, Validation
from minigpt4.tasks.image_text_pretrain import ImageTextPretrain

__all__ = ["ImageTextPretrain", "StepLoss", "Task", "Validation"]

"""What one training step and one validation mean."""

from minigpt4.tasks.training import ImageTextPretrain, StepLoss, Task, Validation

__all__ = ["ImageTextPretrain", "StepLoss", "Task", "Validation"]

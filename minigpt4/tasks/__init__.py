"""What one training step, one validation and one evaluation mean."""

from minigpt4.tasks import training  # noqa: F401 - registers its task

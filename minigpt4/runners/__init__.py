"""The training loop and what it is made of."""

from minigpt4.runners.optim import LrSettings, linear_warmup_cosine_lr, linear_warmup_step_lr
from minigpt4.runners.trainer import EpochRunner

__all__ = ["EpochRunner", "LrSettings", "linear_warmup_cosine_lr", "linear_warmup_step_lr"]

"""The training loop and what it is made of."""

from minigpt4.runners.epochs import EpochRunner
from minigpt4.runners.lr_schedule import LrSettings, linear_warmup_cosine_lr, linear_warmup_step_lr

__all__ = ["EpochRunner", "LrSettings", "linear_warmup_cosine_lr", "linear_warmup_step_lr"]

"""What happens when a loss or a gradient is not finite."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from minigpt4.common.dist import Processes
from minigpt4.common.errors import MiniGPT4Error
from minigpt4.runners.meters import StepRecord

logger = logging.getLogger(__name__)
LIMIT = 5
"""Skipped steps in a row that end the run."""
SCALED_LIMIT = 20
"""The same with a loss scale, which needs up to 16 of them to find its level."""
SHOWN_SAMPLES = 8


class TrainingError(MiniGPT4Error):
    """Training cannot go on."""


class FiniteGuard:
    """Reports skipped updates with their samples, and ends the run when they do not stop.

    The weights are safe already: the updater has left them as they were.

    Args:
        scaled: Whether a loss scale is in use, with which a skipped step now and then is normal.
    """

    def __init__(self, scaled: bool) -> None:
        self.scaled = scaled
        self.in_a_row = 0

    def check(self, records: Sequence[StepRecord], processes: Processes) -> None:
        """Look at the steps since the last log point; every process must call it with the same ones.

        Raises:
            TrainingError: Too many steps in a row were skipped; the message names the steps and the samples.
        """
        limit = SCALED_LIMIT if self.scaled else LIMIT
        for record in records:
            if not record.skipped and record.finite:
                self.in_a_row = 0
                continue
            self.in_a_row += 1
            if self.scaled and record.finite and self.in_a_row < limit:
                logger.info("step %d: gradients overflowed; loss scale lowered, update skipped", record.step)
                continue
            message = _message(record, processes)
            if self.in_a_row >= limit:
                raise TrainingError(
                    f"{message} This is the {self.in_a_row}th step in a row; lower run.init_lr, set run.amp=off or "
                    "bf16, or look at these samples, then go on with run.resume_ckpt_path"
                )
            if processes.is_main:
                logger.warning("%s", message)


def _message(record: StepRecord, processes: Processes) -> str:
    what = "gradient" if record.finite else "loss"
    guilty = record.image_ids if record.bad_here or record.finite else []
    samples = [name for ids in processes.gather(guilty) for name in ids]
    shown = ", ".join(samples[:SHOWN_SAMPLES])
    more = f" and {len(samples) - SHOWN_SAMPLES} more" if len(samples) > SHOWN_SAMPLES else ""
    return (
        f"step {record.step}: the {what} is not finite (samples: {shown}{more}); "
        "the update was skipped and the weights are unchanged."
    )


def check_first_loss(loss: float, vocab_size: int) -> None:
    """Warn when the very first loss is that of guessing, which a language model with its weights never shows."""
    guessing = math.log(vocab_size)
    if loss > guessing - 0.5:
        logger.warning(
            "the first loss is %.2f, no better than guessing among %s tokens (%.2f): the language model's weights look "
            "broken or random; check model.llama_model",
            loss,
            f"{vocab_size:,}",
            guessing,
        )

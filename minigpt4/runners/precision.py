"""Which number formats a training run computes in."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from minigpt4.common.schema import Amp, Precision


@dataclass(frozen=True, slots=True)
class TrainPrecision:
    """Number formats of a run; the projection and its optimizer always compute in float32.

    Attributes:
        frozen: Format of the frozen weights, and so of everything computed with them.
        scale_loss: Whether gradients need a loss scale, because they pass through float16.
        reason: Why, for the log.
    """

    frozen: torch.dtype
    scale_loss: bool
    reason: str

    def __str__(self) -> str:
        frozen = str(self.frozen).removeprefix("torch.")
        scaled = "with a loss scale" if self.scale_loss else "no loss scale"
        return f"frozen weights in {frozen}, projection in float32, {scaled} ({self.reason})"


FORMATS = {
    Amp.bf16: torch.bfloat16,
    Amp.fp16: torch.float16,
    Amp.off: torch.float32,
    Precision.float32: torch.float32,
    Precision.bfloat16: torch.bfloat16,
    Precision.float16: torch.float16,
}


def native_amp(device: torch.device) -> Amp:
    """The fastest format that the device computes natively."""
    if device.type != "cuda":
        return Amp.off
    return Amp.bf16 if torch.cuda.get_device_capability(device) >= (8, 0) else Amp.fp16


def train_precision(amp: Amp, precision: Precision, device: torch.device) -> TrainPrecision:
    """Number formats from `run.amp` and `model.precision`.

    Autocast is not needed: the frozen weights are held in the format they compute in, and the projection, the only
    module in float32, hands its output over in the language model's format.

    Args:
        amp: `auto` follows the device.
        precision: `auto` follows amp; anything else wins for the frozen weights.
        device: Of this process.
    """
    chosen = native_amp(device) if amp is Amp.auto else amp
    reason = f"run.amp: {amp.value}" + (f", {chosen.value} on {device.type}" if amp is Amp.auto else "")
    frozen = FORMATS[chosen]
    if precision is not Precision.auto:
        frozen = FORMATS[precision]
        reason += f", model.precision: {precision.value}"
    return TrainPrecision(frozen, scale_loss=frozen is torch.float16, reason=reason)


def evaluation_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Format of the frozen weights in evaluation and chat; `auto` follows the device."""
    return FORMATS[native_amp(device) if precision is Precision.auto else precision]

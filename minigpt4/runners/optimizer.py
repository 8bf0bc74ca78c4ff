"""What is trained, and the update of it: AdamW, clipping, loss scale and the guard against non-finite gradients."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from minigpt4.common.errors import ConfigError
from minigpt4.common.schema import RunConfig

logger = logging.getLogger(__name__)
BETA1 = 0.9
NOT_DECAYED = re.compile(r"(^|\.)(bias|ln|norm|layernorm|ln_\w+)(\.|$)", re.IGNORECASE)


def trainable_parameters(model: nn.Module, declared: Iterable[str]) -> dict[str, nn.Parameter]:
    """The parameters that learn, logged by name and shape, and checked against what the model says of itself.

    Args:
        model: Not yet wrapped.
        declared: Names that must be trainable, and nothing else.

    Raises:
        ConfigError: Something else would be trained, or a part would not.
    """
    found = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    expected = set(declared)
    if set(found) != expected:
        unexpected, frozen = sorted(set(found) - expected), sorted(expected - set(found))
        raise ConfigError(
            "the trainable set is not what the model declares: "
            f"unexpected {unexpected or 'nothing'}, frozen by mistake {frozen or 'nothing'}"
        )
    for name, parameter in found.items():
        logger.info("trainable: %s %s = %s", name, list(parameter.shape), f"{parameter.numel():,}")
    total, everything = (sum(p.numel() for p in group) for group in (found.values(), model.parameters()))
    logger.info("trainable parameters: %s of %s", f"{total:,}", f"{everything:,}")
    return found


def parameter_groups(parameters: dict[str, nn.Parameter], weight_decay: float) -> list[dict[str, object]]:
    """Two groups: matrices, which decay, and biases and norms, which do not (empty ones are left out)."""
    plain = [name for name, p in parameters.items() if p.ndim < 2 or NOT_DECAYED.search(name)]
    decayed = [name for name in parameters if name not in plain]
    groups = [
        {"params": [parameters[name] for name in decayed], "weight_decay": weight_decay},
        {"params": [parameters[name] for name in plain], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(parameters: dict[str, nn.Parameter], run: RunConfig) -> torch.optim.AdamW:
    """AdamW as the published runs used it; fused, because only that skips an update without asking the device."""
    groups = parameter_groups(parameters, run.weight_decay)
    return torch.optim.AdamW(groups, lr=run.init_lr, betas=(BETA1, run.beta2), fused=True)


class Updater:
    """One optimizer step from accumulated gradients, without waiting for the device.

    Args:
        optimizer: AdamW, fused.
        scaler: Loss scale; disabled where gradients do not pass through float16.
        max_grad_norm: Gradients are clipped to this norm; None: not at all.
    """

    def __init__(self, optimizer: torch.optim.AdamW, scaler: torch.amp.GradScaler, max_grad_norm: float | None) -> None:
        self.optimizer = optimizer
        self.scaler = scaler
        self.max_grad_norm = max_grad_norm
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def step(self, lr: float) -> tuple[Tensor, Tensor]:
        """Update the weights and drop the gradients.

        Where a gradient is not finite, weights and moments stay as they are.

        Args:
            lr: Learning rate of this step.

        Returns:
            The gradient's norm before clipping, and whether the update was skipped: scalars on the device.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self._parameters, self.max_grad_norm, norm)
        skipped = ~torch.isfinite(norm)
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm, skipped


def build_updater(
    parameters: dict[str, nn.Parameter], run: RunConfig, device: torch.device, scale_loss: bool
) -> Updater:
    """The updater of a run; `scale_loss`: gradients pass through float16."""
    scaler = torch.amp.GradScaler(device.type, enabled=scale_loss)
    return Updater(build_optimizer(parameters, run), scaler, run.max_grad_norm)

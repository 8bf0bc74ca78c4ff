"""Muon for the matrices inside, AdamW for everything else, one cosine for both."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn


class HybridOptimizer:
    """Muon (orthogonalised momentum) on the hidden matrices, AdamW on embeddings, heads, norms and biases.

    Small transformers learn from about half as many images this way as with AdamW alone.

    Args:
        modules: what to train.
        steps: length of the cosine.
        muon_lr: peak rate of the matrices, in units of the RMS of an AdamW update.
        adam_lr: peak rate of the rest.
        warmup: steps of linear warm-up.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        steps: int,
        muon_lr: float = 2e-3,
        adam_lr: float = 2e-3,
        warmup: int = 50,
        max_norm: float = 1.0,
    ) -> None:
        self.steps, self.warmup, self.max_norm = steps, warmup, max_norm
        matrices, others = [], []
        for module in modules:
            for name, parameter in module.named_parameters():
                hidden = parameter.ndim == 2 and ("blocks" in name or "layer" in name)
                (matrices if hidden else others).append(parameter)
        self.parameters = matrices + others
        self.optimizers: list[tuple[torch.optim.Optimizer, float]] = [
            (torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0), adam_lr)
        ]
        if matrices:
            muon = torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
            self.optimizers.append((muon, muon_lr))

    def step(self, step: int) -> None:
        """Update at step `step` (from 0) and clear the gradients."""
        if step < self.warmup:
            factor = (step + 1) / self.warmup
        else:
            done = (step - self.warmup) / max(1, self.steps - self.warmup)
            factor = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))
        torch.nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        for optimizer, peak in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

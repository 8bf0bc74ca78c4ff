"""Gradients shared by the processes of a run: DDP around the trainable parts alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from minigpt4.common.dist import Processes


class SharedGradients:
    """Wraps the trainable children of a model in DDP, once; the frozen ones never enter it.

    With a single process nothing is wrapped. Parameter names change while the wrappers are in place, so files are
    read and written inside `unwrapped`.

    Args:
        model: Its direct children that hold a trainable parameter are wrapped, in place.
        processes: Of the run.
    """

    def __init__(self, model: nn.Module, processes: Processes) -> None:
        self.model = model
        self.parts = {
            name: child
            for name, child in model.named_children()
            if any(parameter.requires_grad for parameter in child.parameters())
        }
        self.wrapped: dict[str, Any] = {}
        if processes.world_size > 1:
            self.wrapped = {name: processes.accelerator.prepare_model(part) for name, part in self.parts.items()}
        self._place(self.wrapped)

    def _place(self, modules: dict[str, Any]) -> None:
        for name, module in modules.items():
            setattr(self.model, name, module)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backward passes inside add to the gradients of this process only (all micro-batches but the last)."""
        with ExitStack() as stack:
            for module in self.wrapped.values():
                stack.enter_context(module.no_sync())
            yield

    @contextmanager
    def unwrapped(self) -> Iterator[None]:
        """The model as it was built, for saving, loading and validation."""
        self._place(self.parts)
        try:
            yield
        finally:
            self._place(self.wrapped)

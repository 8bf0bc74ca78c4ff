"""Names in a configuration -> classes of the package."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from minigpt4.common.errors import ConfigError, did_you_mean

T = TypeVar("T")
C = TypeVar("C", bound=Callable[..., Any])


class Registry(Generic[T]):
    """A table of named classes (or functions) of one kind.

    The package that owns the entries is imported on the first look-up, so that importing a registry costs
    nothing and no `import *` is needed for its side effects. A package with many entries of which a run needs few has
    a mapping `PLACES`, name -> module, and each module is imported when its name is looked up. A registry holds
    classes only, never paths or state.

    Args:
        kind: What an entry is, as error messages call it ("model").
        package: module (or package) whose import registers every entry.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[C], C]:
        """A decorator that enters what it decorates under `name`.

        Raises:
            ValueError: The name is taken (a mistake in the code, not in a configuration).
        """

        def enter(entry: C) -> C:
            if name in self._entries:
                raise ValueError(f"{self.kind} '{name}' is registered twice: {self._entries[name]} and {entry}")
            self._entries[name] = entry  # type: ignore[assignment]
            return entry

        return enter

    def get(self, name: str) -> T:
        """The entry called `name`.

        Raises:
            ConfigError: There is none; the message names the nearest.
        """
        places = self._places()
        if name in places:
            importlib.import_module(places[name])
        if name not in self._entries:
            raise ConfigError(f"unknown {self.kind} '{name}'; {did_you_mean(name, {*self._entries, *places})}")
        return self._entries[name]

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted({*self._places(), *self._entries})

    def _places(self) -> Mapping[str, str]:
        """The modules of the entries that are imported by name; the owning package is imported first."""
        places: Mapping[str, str] = getattr(importlib.import_module(self._package), "PLACES", {})
        return places


builders: Registry[Any] = Registry("dataset builder", "minigpt4.datasets.builders")
readers: Registry[Any] = Registry("annotation reader", "minigpt4.datasets.readers")
processors: Registry[Any] = Registry("processor", "minigpt4.processors")
models: Registry[Any] = Registry("model", "minigpt4.models")
tasks: Registry[Any] = Registry("task", "minigpt4.tasks")
runners: Registry[Any] = Registry("runner", "minigpt4.runners.trainer")
schedules: Registry[Any] = Registry("learning-rate schedule", "minigpt4.runners.optim")
refiners: Registry[Any] = Registry("refiner", "minigpt4.curate.refiners")

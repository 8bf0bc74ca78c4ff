"""Experiment trackers: TensorBoard, Weights & Biases, Trackio, through accelerate."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minigpt4.common.errors import ConfigError, did_you_mean

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}


def check_trackers(names: Sequence[str]) -> None:
    """Raise a ConfigError for a tracker that is unknown or not installed."""
    for name in names:
        if name not in PACKAGES:
            raise ConfigError(f"run.trackers: unknown tracker '{name}'; {did_you_mean(name, PACKAGES)}")
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise ConfigError(
                f"run.trackers: {name} is not installed; run: pip install {PACKAGES[name]}, or take it off the list"
            )


class Trackers:
    """The trackers of a run; in other processes than the main one nothing is sent.

    Args:
        names: Of `PACKAGES`.
        project: What the runs are grouped under.
        folder: The run folder; its name is the run's.
        config: Resolved configuration, shown beside the curves.
        active: Whether this is the main process.
    """

    def __init__(
        self, names: Sequence[str], project: str, folder: Path, config: Mapping[str, Any], active: bool
    ) -> None:
        check_trackers(names)
        self._names = names if active else ()
        self._project = project
        self._folder = folder
        self._config = config
        self._trackers: list[Any] = []

    def start(self, step: int) -> None:
        """Open them, before optimizer step `step`; what TensorBoard has of later ones, in a run gone on with, goes."""
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        for name in self._names:
            tracker_class = LOGGER_TYPE_TO_CLASS[name]
            if tracker_class.requires_logging_directory:
                # One step more: the epoch that ends at a step is logged under the same number as the step that follows.
                tracker = tracker_class("tensorboard", logging_dir=str(self._folder), purge_step=step + 1)
            else:
                tracker = tracker_class(self._project, name=self._folder.name)
            tracker.start()
            if name != "tensorboard":  # its writer would make a run of its own of them; config.yaml lies beside it
                tracker.store_init_configuration(dict(self._config))
            self._trackers.append(tracker)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send the values of an optimizer step."""
        for tracker in self._trackers:
            tracker.log(dict(values), step=step)

    def finish(self) -> None:
        """Flush and close."""
        for tracker in self._trackers:
            tracker.finish()
        self._trackers = []

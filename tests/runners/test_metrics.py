"""Trackers are checked before a run starts."""

from __future__ import annotations

import pytest

from minigpt4.common.errors import ConfigError
from minigpt4.runners.metrics import check_trackers


def test_trackers_are_known_and_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="did you mean 'tensorboard'"):
        check_trackers(["tensorbord"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        check_trackers(["wandb"])

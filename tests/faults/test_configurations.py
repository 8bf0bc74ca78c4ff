"""A few configurations drawn from the schema, tried without the model; `make torture` builds and runs a thousand."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, given

from minigpt4.common.errors import MiniGPT4Error
from minigpt4.runners import train as train_module
from tests.faults.configurations import Trials, overrides
from tests.faults.outcomes import Outcome


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Trials:
    return Trials(tmp_path_factory.mktemp("configurations"))


@pytest.fixture
def without_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(*_: object, **__: object) -> None:
        raise MiniGPT4Error("everything before the model was right")

    monkeypatch.setattr(train_module, "build_model", reached)


@hypothesis.settings(
    max_examples=30, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
@given(settings=overrides())
def test_drawn_settings_are_refused_or_work(trials: Trials, without_model: None, settings: dict[str, Any]) -> None:
    assert trials.outcome(settings, dry_run=True) == (Outcome.survived, "")


def test_endless_plans_are_shown_at_once(trials: Trials) -> None:
    assert trials.outcome({"run.max_epoch": 2**40, "run.warmup_steps": 10**9}, dry_run=True) == (Outcome.survived, "")


def test_what_is_wrong_is_noticed(trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself: an error of Python's, a message of two lines, no checkpoint."""
    wrong: list[type[Exception] | None] = [KeyError, MiniGPT4Error, None]
    found = []
    for error in wrong:

        def run(*_: object, error: type[Exception] | None = error, **__: object) -> None:
            if error is not None:
                raise error("one\ntwo")

        monkeypatch.setattr("tests.faults.configurations.train", run)
        found.append(trials.outcome({}, dry_run=False)[0])
    assert found == [Outcome.wrong, Outcome.wrong, Outcome.lost]

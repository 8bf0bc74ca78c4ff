"""A user's mistake ends a command with one line; a bug keeps its traceback."""

from __future__ import annotations

import pytest

from minigpt4.common.cli import exit_on_error
from minigpt4.common.errors import ConfigError


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_context_turns_a_mistake_into_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, exit_on_error():
        raise ConfigError("no such key")
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: no such key\n"


def test_decorator_leaves_results_and_bugs_alone() -> None:
    @exit_on_error()
    def run(fail: bool) -> int:
        if fail:
            raise KeyError("bug")
        return 3

    assert run(False) == 3
    with pytest.raises(KeyError):
        run(True)


def test_several_processes_say_which_one_failed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit), exit_on_error():
        raise ConfigError("lost")
    assert capsys.readouterr().err == "[rank 1] error: lost\n"

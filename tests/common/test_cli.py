"""The arguments that name a configuration; a user's mistake ends a command with one line, a bug keeps its traceback."""

from __future__ import annotations

import argparse

import pytest

from minigpt4.common.cli import add_config_arguments, exit_on_error, read_config
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


def test_a_full_disk_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for error, line in (
        (
            OSError(28, "No space left on device", "a/b.json"),
            "error: a/b.json cannot be written: No space left on device",
        ),
        (OSError(30, "Read-only file system"), "error: a file cannot be written: Read-only file system"),
    ):
        with pytest.raises(SystemExit) as caught, exit_on_error():
            raise error
        shown = capsys.readouterr().err
        assert caught.value.code == 2 and shown.startswith(line) and shown.count("\n") == 1
    with pytest.raises(FileNotFoundError), exit_on_error():
        raise FileNotFoundError(2, "No such file or directory", "a")


def test_several_processes_say_which_one_failed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit), exit_on_error():
        raise ConfigError("lost")
    assert capsys.readouterr().err == "[rank 1] error: lost\n"


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_config_arguments(parser, required=False)
    return parser.parse_args(arguments)


def test_a_commands_own_switches_win_over_options() -> None:
    args = parsed("--options", "run.seed=1", "run.max_epoch=2", "--options", "evaluation.seed=3")
    config = read_config(args, ["run.seed=4"]).config
    assert (config.run.seed, config.run.max_epoch, config.evaluation.seed) == (4, 2, 3)
    assert config.model.model_type == "tiny"


def test_print_config_shows_the_layers_and_stops(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read_config(parsed("--print-config", "--options", "run.seed=7"))
    assert caught.value.code == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "run.seed" in line]
    assert "7" in line and "--options" in line

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from minigpt4.common.errors import ConfigError
from minigpt4.common.logging import (
    append_epoch,
    log_to_file,
    read_epochs,
    set_up_logging,
    terminal,
    train_line,
    write_epochs,
)


@pytest.fixture(autouse=True)
def logging_restored() -> Iterator[None]:
    root, package = logging.getLogger(), logging.getLogger("minigpt4")
    handlers, levels = root.handlers[:], (root.level, package.level)
    yield
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    package.setLevel(levels[1])
    logging.captureWarnings(False)


def test_the_file_has_the_messages_from_before_it_was_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging()
    package, library = logging.getLogger("minigpt4.a"), logging.getLogger("library")
    package.info("early")
    library.info("of a library")
    log_to_file(tmp_path / "run.log")
    package.info("late")
    library.warning("warned")
    logged = [line.split("] ")[-1] for line in (tmp_path / "run.log").read_text().splitlines()]
    assert logged == ["early", "late", "warned"]
    assert [line.split("] ")[-1] for line in capsys.readouterr().err.splitlines()] == logged


def test_other_ranks_only_warn_and_say_which_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(rank=3)
    logging.getLogger("minigpt4").info("hidden")
    logging.getLogger("minigpt4").warning("shown")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("[rank 3] ") and line.endswith("[WARNING] shown")


def test_the_train_line_is_read_by_people() -> None:
    values = {"epoch": 0, "epochs": 5, "step": 50, "steps": 500, "loss": 2.09664, "lr": 8.4e-6, "eta": 4350.2}
    line = train_line(**values, samples_per_second=57.94, data_share=0.1)
    assert line == "epoch 0 (1/5)  step  50/500  loss 2.0966  lr 8.40e-6  57.9 samples/s  eta 1:12:30"
    slow = train_line(**values, samples_per_second=0.5, data_share=0.62)
    assert slow.endswith("0.5 samples/s  eta 1:12:30  waiting for data 62% (raise run.num_workers)")
    first = train_line(**values | {"eta": None, "step": 1}, samples_per_second=0.5, data_share=0.62)
    assert first.endswith("step   1/500  loss 2.0966  lr 8.40e-6  0.5 samples/s  eta ?")


def test_warnings_are_coloured_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = []
    for on_terminal in (True, False):
        monkeypatch.setattr("sys.stderr.isatty", lambda on_terminal=on_terminal: on_terminal, raising=False)
        terminal.cache_clear()
        set_up_logging()
        logging.getLogger("minigpt4").warning("[bold]careful[/bold] %s", "x" * 200)
        logging.getLogger("minigpt4").info("calm")
        shown.append(capsys.readouterr().err)
    terminal.cache_clear()
    assert shown[0].startswith("\x1b[33m") and shown[0].count("\n") == 2 and "[bold]careful[/bold] xxx" in shown[0]
    assert "\x1b" not in shown[0].splitlines()[1]
    assert "\x1b" not in shown[1] and shown[1].count("\n") == 2


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be written: .*; set run\.output_dir or run\.run_dir"):
        log_to_file(tmp_path)


def test_a_log_is_cut_where_the_run_is_resumed(tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    assert read_epochs(file, 10) == []
    for step in (5, 10, 15):
        append_epoch(file, {"step": step, "loss": step / 10})
    with file.open("a") as stream:
        stream.write('{"step": 20, "lo')
    lines = file.read_text().splitlines(keepends=True)
    epochs = read_epochs(file, 10)
    write_epochs(file, epochs)
    assert file.read_text() == "".join(lines[:2])
    write_epochs(file, [])
    assert not file.exists()

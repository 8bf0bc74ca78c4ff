"""Bars on a terminal, lines elsewhere, and nothing where the package's messages are not shown."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest

from minigpt4.common import logging as progress
from minigpt4.common.logging import Progress, duration, terminal, track


class Clock:
    """A clock that the tests move."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """The log, with the messages of level INFO."""
    with caplog.at_level(logging.INFO, logger="minigpt4"):
        yield caplog


def run(clock: Clock, total: int | None, items: int, seconds: float) -> None:
    for _ in track(range(items), "captions of a (3 of 6)", "images", total):
        clock.now += seconds


@pytest.mark.parametrize(
    ("seconds", "number"),
    [(0.01, 0), (0.1, 5), (1.0, 10), (36.0, 12)],
    ids=["1 s", "10 s", "100 s", "1 h"],
)
def test_a_step_without_a_terminal_leaves_a_line_at_each_tenth(
    clock: Clock, log: pytest.LogCaptureFixture, seconds: float, number: int
) -> None:
    run(clock, 100, 100, seconds)
    assert len(log.messages) == number
    assert all(message.startswith("captions of a (3 of 6): ") for message in log.messages)


def test_a_line_says_how_far_how_fast_and_how_long(clock: Clock, log: pytest.LogCaptureFixture) -> None:
    run(clock, 200, 200, 0.5)
    assert log.messages[0] == "captions of a (3 of 6): 20 of 200 images (10%), 2.0/s, 0:01:30 left"
    assert log.messages[-1] == "captions of a (3 of 6): 200 images in 0:01:40 (2.0/s)"


def test_a_slow_step_says_something_before_its_first_tenth(clock: Clock, log: pytest.LogCaptureFixture) -> None:
    run(clock, 10_000, 1000, 3.6)  # an hour for the first tenth
    done = [re.findall(r"([\d,]+) of 10,000", message) for message in log.messages]
    assert done == [["9"], ["43"], ["177"], ["711"], ["1,000"], []]
    assert log.messages[0].endswith("9 of 10,000 images (0%), 3.6 s each, 9:59:28 left")


def test_rows_of_unknown_number_are_counted(clock: Clock, log: pytest.LogCaptureFixture) -> None:
    for _ in track(iter(range(1000)), "reading", "rows"):
        clock.now += 1.0
    assert log.messages == [
        "reading: 30 rows, 1.0/s",
        "reading: 150 rows, 1.0/s",
        "reading: 630 rows, 1.0/s",
        "reading: 1,000 rows in 0:16:40 (1.0/s)",
    ]


def test_the_first_item_does_not_count_for_the_time_left(clock: Clock) -> None:
    with Progress("training", 11, "steps", lines=False) as step:
        clock.now += 600.0  # compiles
        step.advance()
        assert step.seconds_left() is None
        clock.now += 2.0
        step.advance()
        assert step.seconds_left() == pytest.approx(9 * 2.0)


def test_a_step_that_fails_or_is_quiet_claims_no_end(clock: Clock, log: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError), Progress("captions", 10, "images") as step:
        clock.now += 5.0
        step.advance()
        raise ValueError
    with Progress("epoch 0", 10, "steps", lines=False) as step:
        for _ in range(10):
            clock.now += 60.0
            step.advance()
    assert [message for message in log.messages if "10%" not in message] == []


def test_a_short_step_ends_with_a_line_where_that_is_wished(clock: Clock, log: pytest.LogCaptureFixture) -> None:
    for shortest in (0.0, 2.0):
        with Progress("captions of a (1 of 6)", 1, "batches", shortest=shortest) as step:
            clock.now += 1.0
            step.advance()
    assert log.messages == ["captions of a (1 of 6): 1 batch in 1.0 s (1.0/s)"]


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])
def test_a_terminal_shows_a_bar_on_the_rank_that_logs(
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    level: int,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    terminal.cache_clear()
    with caplog.at_level(level, logger="minigpt4"):
        run(clock, 4, 4, 1.0)
    terminal.cache_clear()
    shown = capsys.readouterr().err
    if level == logging.WARNING:
        assert not shown and not caplog.messages
    else:
        assert "captions of a (3 of 6)" in shown and "2 of 4 images (50%)" in shown and "0:00:0" not in shown
        assert caplog.messages == ["captions of a (3 of 6): 4 images in 4.0 s (1.0/s)"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (10, "0:00:10"), (90_061, "1 day, 1:01:01")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text

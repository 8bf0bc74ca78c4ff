"""The ledger, and the states that its events leave samples in."""

from __future__ import annotations

import errno
import fcntl
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from minigpt4.common.errors import DataError
from minigpt4.curate.ledger import Ledger, Tally, read_events, sample_states
from tests.curate.conftest import described, drawn, fill, kept, refined


def test_a_torn_line_is_ignored_and_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        ledger.append([drawn(0), drawn(1)])
    path.write_bytes(path.read_bytes()[:-9])
    assert read_events(path) == [drawn(0)]
    with Ledger(path) as ledger:
        ledger.append([drawn(2)])
    assert read_events(path) == [drawn(0), drawn(2)]


@pytest.mark.parametrize("line", ["{", "[]", '{"sample": 3, "step": "draw"}', '{"sample": "3"}'])
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"sample": "0", "step": "draw"}\n' + line + "\n")
    with pytest.raises(DataError, match=r"ledger\.jsonl, line 2: "):
        read_events(path)


def test_two_commands_do_not_write_at_once(ledger: Ledger) -> None:
    with pytest.raises(DataError, match="in use by another curation command"):
        Ledger(ledger.path)


def test_a_disk_without_locks_is_not_taken_for_another_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        ledger.append([drawn(0)])
    assert read_events(tmp_path / "ledger.jsonl") == [drawn(0)]


def test_a_surrogate_does_not_end_the_run(ledger: Ledger) -> None:
    ledger.append([drawn(0), described(0, "broken \ud800 text")])
    assert read_events(ledger.path)[1]["texts"] == ["broken ? text"]


def test_a_full_disk_leaves_complete_lines(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a line would spoil the next one, and the ledger with it."""
    ledger.append([drawn(0)])
    file = ledger._file

    class FullDisk:
        """Writes ten bytes, then none."""

        def __init__(self) -> None:
            self.free = 10

        def write(self, content: memoryview) -> int:
            if not self.free:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.free = 0
            return int(file.write(content[:10]))

        def __getattr__(self, name: str) -> Any:
            return getattr(file, name)

    with monkeypatch.context() as patched:
        patched.setattr(ledger, "_file", FullDisk())
        with pytest.raises(DataError, match=r"ledger .* cannot be written: No space left on device"):
            ledger.append([described(0, "text")])
    ledger.append([described(0, "another text")])
    assert read_events(ledger.path) == [drawn(0), described(0, "another text")]


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (refined(7), "line 2: sample '7' was never drawn"),
        ({"sample": "0", "step": "guess"}, "line 2: unknown step 'guess'"),
        ({"sample": "0", "step": "refine"}, "line 2: step 'refine' of sample '0' lacks 'text'"),
    ],
)
def test_events_that_do_not_fit_are_named(event: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        sample_states([drawn(0), event])


def test_every_sample_is_counted_once(ledger: Ledger) -> None:
    fill(ledger, 6)
    ledger.append([described(n, "A red circle.") for n in (1, 2, 3, 4, 5)] + [refined(n) for n in (2, 3, 4, 5)])
    ledger.append([kept(n) for n in (3, 4)])
    ledger.append([{"sample": "5", "step": "filter", "rule": "too_short", "reason": "", "rules": "x"}])
    ledger.append([{"sample": "4", "step": "review", "decision": "accept"}])
    ledger.append([{"sample": "1", "step": "refine", "error": "HTTP 500", "usage": {"prompt_tokens": 3}}])
    states = ledger.states()
    tally = Tally.of(states)
    assert (tally.drawn, tally.accepted, tally.rejected, tally.failed) == (6, 1, Counter({"rule too_short": 1}), 1)
    assert tally.pending == Counter({"describe": 1, "refine": 1, "filter": 1, "review": 1})
    assert str(tally).startswith("6 drawn = 1 accepted + 1 rejected + 4 pending (")
    assert "1 of these after a failure" in str(tally)
    assert states["1"].error == "HTTP 500"


def test_a_later_text_is_judged_again() -> None:
    events = [drawn(0), described(0, "x"), refined(0), kept(0), refined(0, "Another text.")]
    assert sample_states(events)["0"].next_step == "filter"
    assert sample_states([*events, described(0, "y")])["0"].next_step == "refine"

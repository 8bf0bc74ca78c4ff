"""The endpoint refiner beside a server that misbehaves: no sample is lost, and the next run mends it."""

from __future__ import annotations

from datetime import datetime, timezone
from random import Random

import pytest

from minigpt4.common.errors import ConfigError, DataError
from minigpt4.curate.ledger import Ledger, Tally, cases_of
from minigpt4.curate.refine import refine
from minigpt4.curate.refiners import EndpointRefiner
from minigpt4.curate.refiners.endpoint import RateLimit, RequestFailed, delay, reply_of, retry_after
from tests.curate.conftest import (
    TEXT,
    Behaviour,
    FakeServer,
    answer,
    breaks_off,
    config,
    described,
    drips,
    fill,
    hangs_up,
    says,
    says_nothing,
    steps_of,
)

DESCRIPTION = f"{TEXT} {TEXT} large red"
MISBEHAVIOURS: dict[str, tuple[Behaviour, str]] = {
    "error": (says('{"error": "overloaded"}', 500), "HTTP 500: .*overloaded"),
    "too many": (says("slow down", 429, Retry_After="7"), "HTTP 429"),
    "empty text": (says(answer("  ")), "the answer is empty"),
    "no text": (says(answer(None)), "the answer is empty"),
    "no body": (says(""), "no whole JSON"),
    "truncated JSON": (says(answer(TEXT)[:60]), "no whole JSON"),
    "fewer bytes than promised": (breaks_off, "breaks off|no connection"),
    "other JSON": (says('{"choices": []}'), r"no choices\[0\]"),
    "a number": (says("5"), r"no choices\[0\]"),
    "HTML": (says("<html><body>Bad gateway</body></html>", Content_Type="text/html"), "HTML instead of JSON"),
    "HTML called JSON": (says("<!doctype html><p>Sign in</p>"), "HTML instead of JSON"),
    "nonsense": (says(answer("Lorem ipsum dolor sit amet consectetur.")), "shares 0% of its words"),
    "cut": (says(answer("There is a large", finish_reason="length")), "cut at curation.refine.max_tokens"),
    "hangs up": (hangs_up, "no connection"),
    "nothing": (says_nothing, "no whole answer within"),
    "byte by byte": (drips, "no whole answer within"),
}


@pytest.mark.parametrize("name", MISBEHAVIOURS)
def test_a_misbehaving_server_loses_no_sample(name: str, server: FakeServer, ledger: Ledger) -> None:
    behaviour, reason = MISBEHAVIOURS[name]
    server.behaviours = [says(answer(TEXT)), behaviour]
    fill(ledger, 3, lambda number: described(number, DESCRIPTION))
    cfg = config(server.url, timeout=0.2 if "within" in reason else 5.0)
    refine(cfg, ledger)
    cases = cases_of(ledger.events())
    tally = Tally.of(cases)
    assert (tally.drawn, tally.pending["filter"], tally.pending["refine"], tally.failed) == (3, 2, 1, 1)
    (failure,) = [event for event in steps_of(ledger.events(), "refine") if "error" in event]
    assert failure["sample"] == "1"
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(failure["error"])
    refine(config(server.url), ledger)  # the next run asks for this one alone
    assert len(server.requests) == 4
    assert [case.text for case in cases_of(ledger.events()).values()] == [TEXT] * 3
    refine(config(server.url), ledger)
    assert len(server.requests) == 4


def test_it_asks_as_in_the_paper(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "secret")
    refiner = EndpointRefiner(config(server.url, api_key_env="SOME_KEY", temperature=0.5))
    correction = refiner.refine("0", [DESCRIPTION, "never sent"])
    assert (correction.text, correction.usage) == (TEXT, {"prompt_tokens": 100, "completion_tokens": 10})
    body, headers = server.requests[0]
    assert (body["model"], body["temperature"], headers["Authorization"]) == ("m", 0.5, "Bearer secret")
    (message,) = body["messages"]
    assert message["content"].startswith("Fix the error in the given paragraph.")
    assert message["content"].endswith(f"without explanation.\n\n{DESCRIPTION}")
    assert "secret" not in repr(refiner.endpoint)


def test_it_tries_again_and_counts_every_token(server: FakeServer) -> None:
    server.behaviours = [says("", 503), says("", 429, Retry_After="40"), says(answer(" ")), hangs_up]
    waits: list[float] = []
    cfg = config(server.url, attempts=5, backoff=2.0, max_backoff=30.0)
    correction = EndpointRefiner(cfg, waits.append).refine("0", [DESCRIPTION])
    assert correction.usage == {"prompt_tokens": 200, "completion_tokens": 20}  # the empty answer was paid for
    first, asked, third, fourth = waits
    assert 1 <= first <= 2 and asked == 30 and 4 <= third <= 8 and 8 <= fourth <= 16


@pytest.mark.parametrize("status", [400, 401, 403, 404, 302])
def test_wrong_settings_end_the_run_at_once(status: int, server: FakeServer, ledger: Ledger) -> None:
    server.behaviours = [says("who are you?", status, Location=server.url)] * 9
    fill(ledger, 5, lambda number: described(number, DESCRIPTION))
    with pytest.raises(DataError, match=rf"sample 0: HTTP {status}: who are you\?"):
        refine(config(server.url, attempts=4), ledger)
    assert len(server.requests) == 1
    assert Tally.of(cases_of(ledger.events())).pending["refine"] == 5


def test_several_at_a_time_are_all_written_down(server: FakeServer, ledger: Ledger) -> None:
    server.behaviours = [says("", 500), says("<html>"), says(answer(""))]
    fill(ledger, 30, lambda number: described(number, DESCRIPTION))
    usage = refine(config(server.url, concurrency=8), ledger)
    assert len(steps_of(ledger.events(), "refine")) == 30
    assert Tally.of(cases_of(ledger.events())).failed == 3
    assert usage["prompt_tokens"] == 28 * 100


def test_nothing_listens() -> None:
    with pytest.raises(Exception, match=r"no connection to http://127\.0\.0\.1:1/v1/chat/completions"):
        EndpointRefiner(config()).refine("0", [DESCRIPTION])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "file:///etc/passwd"}, "curation.refine.base_url: 'file:"),
        ({"model": ""}, "curation.refine.model is not set"),
        ({"api_key_env": "NO_SUCH_KEY"}, "environment variable NO_SUCH_KEY is not set"),
        ({"attempts": 0}, "curation.refine.attempts: 0 should be at least 1"),
        ({"timeout": 0.0}, "curation.refine.timeout: 0.0 should be above 0"),
        ({"prompt_path": "none.txt"}, "curation.refine.prompt_path: file none.txt does not exist"),
    ],
)
def test_settings_are_checked_before_anything_is_sent(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EndpointRefiner(config(**settings))
    assert message in str(caught.value)


def test_usage_that_makes_no_sense_counts_as_none() -> None:
    body = answer(TEXT).replace("100", '"many"').replace("10", "-3")
    assert reply_of(body.encode()).usage == {}
    with pytest.raises(RequestFailed):
        reply_of(b"\xff\xfe")


def test_retry_after() -> None:
    now = datetime(2026, 1, 1, tzinfo=timezone.utc)
    assert retry_after("2.5") == 2.5 and retry_after("-1") == 0
    assert retry_after("Thu, 01 Jan 2026 00:01:00 GMT", now) == 60
    assert retry_after("soon") is None and retry_after(None) is None


def test_the_delay_doubles_up_to_the_longest_and_varies() -> None:
    delays = [delay(attempt, None, 1.0, 10.0, Random(attempt)) for attempt in range(1, 9)]
    for attempt, seconds in enumerate(delays, 1):
        assert min(10, 2 ** (attempt - 1)) / 2 <= seconds <= min(10, 2 ** (attempt - 1))
    assert delay(5, None, 1.0, 10.0, Random(1)) != delay(5, None, 1.0, 10.0, Random(2))
    assert delay(1, 8.0, 1.0, 10.0, Random(0)) == 8.0


def test_requests_are_spaced() -> None:
    now, waits = [100.0], list[float]()
    limit = RateLimit(120, clock=lambda: now[0], sleep=waits.append)
    for _ in range(3):
        limit.wait()
    now[0] = 200.0
    limit.wait()
    assert waits == [0.5, 1.0]

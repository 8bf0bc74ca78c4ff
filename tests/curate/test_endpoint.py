"""The endpoint refiner and a server that misbehaves: no sample is lost, and the next run corrects it."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from random import Random

import pytest

from minigpt4.common.errors import ConfigError, DataError
from minigpt4.curate.ledger import Ledger, Tally, read_events
from minigpt4.curate.refiners.base import RefineError
from minigpt4.curate.refiners.endpoint import (
    EndpointRefiner,
    RateLimit,
    delay,
    parse_completion,
    parse_retry_after,
)
from tests.curate.conftest import (
    TEXT,
    Behaviour,
    FakeServer,
    answer,
    breaks_off,
    described,
    drips,
    endpoint_settings,
    fill,
    hangs_up,
    refine_all,
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
    "no body": (says(""), "incomplete or broken JSON"),
    "truncated JSON": (says(answer(TEXT)[:60]), "incomplete or broken JSON"),
    "fewer bytes than promised": (breaks_off, "no connection to .*, or it broke: peer closed"),
    "other JSON": (says('{"choices": []}'), r"no choices\[0\]"),
    "a number": (says("5"), r"no choices\[0\]"),
    "HTML": (says("<html><body>Bad gateway</body></html>", Content_Type="text/html"), "HTML instead of JSON"),
    "HTML called JSON": (says("<!doctype html><p>Sign in</p>"), "HTML instead of JSON"),
    "nonsense": (says(answer("Lorem ipsum dolor sit amet consectetur.")), "shares 0% of its words"),
    "cut": (says(answer("There is a large", finish_reason="length")), "cut at curation.refine.max_tokens"),
    "hangs up": (hangs_up, "no connection"),
    "nothing": (says_nothing, "no complete answer within"),
    "byte by byte": (drips, "no complete answer within"),
}


@pytest.mark.parametrize("name", MISBEHAVIOURS)
def test_a_misbehaving_server_loses_no_sample(name: str, server: FakeServer, ledger: Ledger) -> None:
    behaviour, reason = MISBEHAVIOURS[name]
    server.behaviours = [says(answer(TEXT)), behaviour]
    fill(ledger, 3, lambda number: described(number, DESCRIPTION))
    refine_all(endpoint_settings(server.url, timeout=0.2 if "within" in reason else 5.0), ledger)
    tally = Tally.of(ledger.states())
    assert (tally.drawn, tally.pending["filter"], tally.pending["refine"], tally.failed) == (3, 2, 1, 1)
    (failure,) = [event for event in steps_of(read_events(ledger.path), "refine") if "error" in event]
    assert failure["sample"] == "1"
    assert re.search(reason, failure["error"])
    refine_all(endpoint_settings(server.url), ledger)  # the next run asks for this one alone
    assert len(server.requests) == 4
    assert [state.text for state in ledger.states().values()] == [TEXT] * 3
    refine_all(endpoint_settings(server.url), ledger)
    assert len(server.requests) == 4


def test_it_asks_as_in_the_paper(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "secret")
    refiner = EndpointRefiner(endpoint_settings(server.url, api_key_env="SOME_KEY", temperature=0.5), seed=42)
    correction = refiner.refine("0", [DESCRIPTION, "never sent"])
    assert (correction.text, correction.usage) == (TEXT, {"prompt_tokens": 100, "completion_tokens": 10})
    body, headers = server.requests[0]
    assert (body["model"], body["temperature"], headers["Authorization"]) == ("m", 0.5, "Bearer secret")
    (message,) = body["messages"]
    assert message["content"].startswith("Fix the error in the given paragraph.")
    assert message["content"].endswith(f"without explanation.\n\n{DESCRIPTION}")
    assert body["max_tokens"] == 512


KEY = "sk-a/b+" + "0123456789" * 30
ESCAPED = json.dumps(KEY).replace("/", "\\/").replace("+", "\\u002B")


@pytest.mark.parametrize(
    "echo",
    [
        says(f"wrong key: Bearer {KEY}", 500),
        says(f'{{"error": {ESCAPED}}}', 500),
        says(f"<p>{KEY}</p>"),
        says(f'{{"Authorization": "Bearer {KEY}"}}'),
        says(f"{{{ESCAPED}"),
        says(answer(KEY)),
        says(answer(f"{TEXT} Bearer {KEY}")),
        says(answer(TEXT).replace(TEXT, ESCAPED[1:-1])),
    ],
)
def test_a_server_that_echoes_the_key_does_not_get_it_written(
    echo: Behaviour,
    server: FakeServer,
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    caplog.set_level("INFO")
    server.behaviours = [echo, echo]
    fill(ledger, 1, lambda number: described(number, DESCRIPTION))
    refine_all(endpoint_settings(server.url, api_key_env="SOME_KEY", attempts=2, min_overlap=0.0), ledger)
    assert server.requests[1][1]["Authorization"] == f"Bearer {KEY}"
    assert ledger.states()["0"].next_step == "refine"
    for text in (ledger.path.read_text(), caplog.text):
        assert KEY[:6] not in text and "0123456789" not in text


def test_it_tries_again_and_counts_every_token(server: FakeServer) -> None:
    server.behaviours = [says("", 503), says("", 429, Retry_After="40"), says(answer(" ")), hangs_up]
    waits: list[float] = []
    settings = endpoint_settings(server.url, attempts=5, backoff=2.0, max_backoff=30.0)
    correction = EndpointRefiner(settings, seed=42, sleep=waits.append).refine("0", [DESCRIPTION])
    assert correction.usage == {"prompt_tokens": 200, "completion_tokens": 20}  # the empty answer was paid for
    first, asked, third, fourth = waits
    assert 1 <= first <= 2 and asked == 30 and 4 <= third <= 8 and 8 <= fourth <= 16


@pytest.mark.parametrize("status", [400, 401, 403, 404, 302])
def test_wrong_settings_end_the_run_at_once(status: int, server: FakeServer, ledger: Ledger) -> None:
    server.behaviours = [says("who are you?", status, Location=server.url)] * 9
    fill(ledger, 5, lambda number: described(number, DESCRIPTION))
    with pytest.raises(DataError, match=rf"sample 0: HTTP {status}: who are you\?"):
        refine_all(endpoint_settings(server.url, attempts=4), ledger)
    assert len(server.requests) == 1
    assert Tally.of(ledger.states()).pending["refine"] == 5


def test_several_at_a_time_are_all_recorded(server: FakeServer, ledger: Ledger) -> None:
    server.behaviours = [says("", 500), says("<html>"), says(answer(""))]
    fill(ledger, 30, lambda number: described(number, DESCRIPTION))
    usage = refine_all(endpoint_settings(server.url, concurrency=8), ledger)
    assert len(steps_of(read_events(ledger.path), "refine")) == 30
    assert Tally.of(ledger.states()).failed == 3
    assert usage["prompt_tokens"] == 28 * 100


def test_nothing_listens() -> None:
    with pytest.raises(RefineError, match=r"no connection to http://127\.0\.0\.1:1/v1/chat/completions"):
        EndpointRefiner(endpoint_settings(), seed=42).refine("0", [DESCRIPTION])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "file:///etc/passwd"}, "curation.refine.base_url: 'file:"),
        ({"model": ""}, "curation.refine.model is not set"),
        ({"api_key_env": "NO_SUCH_KEY"}, "environment variable NO_SUCH_KEY is not set"),
        ({"base_url": "http://[::1"}, "curation.refine.base_url: 'http://[::1' should be a URL"),
        ({"base_url": "https://user:secret@host/v1"}, "curation.refine.base_url should hold no user name or password"),
        ({"api_key_env": "KEY_OF_TWO_LINES"}, "environment variable KEY_OF_TWO_LINES holds characters that no key"),
        ({"prompt_path": "none.txt"}, "curation.refine.prompt_path: none.txt does not exist"),
    ],
)
def test_settings_are_checked_before_anything_is_sent(
    settings: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY_OF_TWO_LINES", "secret\nkey")
    with pytest.raises(ConfigError) as caught:
        EndpointRefiner(endpoint_settings(**settings), seed=42)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_usage_that_makes_no_sense_counts_as_none() -> None:
    body = answer(TEXT).replace("100", '"many"').replace("10", "-3")
    assert parse_completion(body, "") == (TEXT, {})


def test_retry_after() -> None:
    now = datetime(2026, 1, 1, tzinfo=timezone.utc)
    assert parse_retry_after("2.5") == 2.5 and parse_retry_after("-1") == 0
    assert parse_retry_after("Thu, 01 Jan 2026 00:01:00 GMT", now) == 60
    assert parse_retry_after("soon") is None and parse_retry_after(None) is None


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

"""The review page, by requests as a browser sends them."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from fastapi.testclient import TestClient

from minigpt4.common.cli import command
from minigpt4.common.errors import ConfigError, DataError
from minigpt4.curate import review_server
from minigpt4.curate.ledger import Ledger, read_events
from minigpt4.curate.review import Review, accept_rest
from minigpt4.curate.review_page import diff, page_address, render_page
from tests.curate.conftest import described, fill, kept, refined, save_images

EVIL = '</textarea><script>alert("x")</script> & $token'


class Browser:
    """Sends to the page what a browser would."""

    def __init__(self, review: Review) -> None:
        self.token = review.token
        self.client = TestClient(
            review_server.build_app(review), base_url="http://127.0.0.1:8000", follow_redirects=False
        )

    def get(self, path: str, **headers: str) -> Any:
        return self.client.get(path, headers=headers)

    def post(self, headers: Mapping[str, str] = MappingProxyType({}), **fields: str) -> Any:
        return self.client.post("/decide", data={"token": self.token} | fields, headers=headers)


@pytest.fixture
def review(ledger: Ledger, tmp_path: Path) -> Review:
    """Four samples: the first three wait, the fourth was not filtered yet."""
    fill(ledger, 3, lambda n: described(n, "raw"), lambda n: refined(n, EVIL if n == 0 else f"Text {n}."), kept)
    ledger.append([{"sample": "3", "step": "draw", "dataset": "d", "index": 3, "name": "n"}, described(3, "raw")])
    return Review(ledger, save_images(tmp_path / "image", 4))


@pytest.fixture
def browser(review: Review) -> Browser:
    return Browser(review)


def decisions(ledger: Ledger) -> list[tuple[str, str, str | None]]:
    events = read_events(ledger.path)
    return [(e["sample"], e["decision"], e.get("text")) for e in events if e["step"] == "review"]


def test_the_page_escapes_what_the_model_said(browser: Browser) -> None:
    response = browser.get("/")
    page = response.text
    assert response.status_code == 200 and "script-src 'self'" in response.headers["Content-Security-Policy"]
    assert "&lt;/textarea&gt;&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; &amp; $token" in page
    assert "<script>alert" not in page
    assert 'src="/image/0.jpg?v=' in page and "4 drawn = 0 accepted + 0 rejected + 4 pending" in page


def test_every_decision_is_saved_at_once(browser: Browser, ledger: Ledger) -> None:
    response = browser.post(sample="0", decision="reject", text=EVIL)
    assert (response.status_code, response.headers["Location"]) == (303, "/?before=0")
    assert decisions(ledger) == [("0", "reject", None)]
    browser.post(sample="1", decision="accept", text="Text 1.")
    browser.post(sample="2", decision="edit", text="Better\r\n text 2.")
    assert decisions(ledger)[1:] == [("1", "accept", None), ("2", "edit", "Better text 2.")]
    assert "Nothing waits for a decision" in browser.get("/").text
    states = ledger.states()
    assert states["0"].rejected_by == "review"
    assert states["2"].accepted and states["2"].text == "Better text 2."


def test_a_decision_can_be_taken_back(browser: Browser, ledger: Ledger) -> None:
    browser.post(sample="1", decision="reject", text="Text 1.")
    page = browser.get("/sample/1").text
    assert "rejected by review" in page and "Text 1." in page
    browser.post(sample="1", decision="accept", text="Text 1.")
    assert ledger.states()["1"].accepted


def test_what_was_typed_is_not_lost_by_the_accept_button(browser: Browser, ledger: Ledger) -> None:
    browser.post(sample="1", decision="accept", text="Text one.")
    assert decisions(ledger) == [("1", "edit", "Text one.")]


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"sample": "1", "decision": "accept", "token": "guess"}, 403, "of an earlier review"),
        ({"sample": "1", "decision": "burn"}, 409, "unknown decision"),
        ({"sample": "1", "decision": "edit", "text": "  "}, 409, "should not be empty"),
        ({"sample": "3", "decision": "accept"}, 409, "does not wait for a decision"),
        ({"sample": "9", "decision": "accept"}, 409, "does not wait for a decision"),
        ({}, 409, "does not wait for a decision"),
    ],
)
def test_other_decisions_are_refused(
    browser: Browser, ledger: Ledger, fields: dict[str, str], status: int, message: str
) -> None:
    response = browser.post(**fields)
    assert (response.status_code, message in response.text) == (status, True)
    assert decisions(ledger) == []


def test_other_sites_cannot_use_it(browser: Browser, ledger: Ledger) -> None:
    """Neither by a name that points at this machine, nor by a form that sends itself."""
    for headers in ({"host": "evil.example:80"}, {"origin": "http://evil.example"}):
        refused = browser.get("/", **headers), browser.post(headers, sample="1", decision="accept")
        assert [one.status_code for one in refused] == [403, 403]
        assert "open this page as http://127.0.0.1:" in refused[0].text
    assert decisions(ledger) == []


def test_other_pages_cannot_frame_it(browser: Browser) -> None:
    for path in ("/", "/sample/1", "/nothing"):
        headers = browser.get(path).headers
        assert headers["X-Frame-Options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


HEAD = b"POST /decide HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-www-form-urlencoded\r\n"
FORM = urlencode({"sample": "1", "decision": "accept", "text": "Text 1, cut o"}).encode()


@contextmanager
def served(review: Review) -> Iterator[int]:
    """Port of the page; in the end every client is sent away."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = review_server.build_server(review)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def test_clients_that_send_half_a_request_do_not_hold_it(
    review: Review, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the others, nor the server when it ends; and half a text does not become a sample's."""
    monkeypatch.setattr(review_server, "LAST_SECONDS", 1)
    form = b"token=" + review.token.encode() + b"&" + FORM
    incomplete = HEAD + b"Content-Length: %d\r\n\r\n" % (len(form) + 9) + form
    halves = (b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: 127", HEAD, incomplete)
    with ExitStack() as stack:
        with served(review) as port:
            clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 20)) for _ in range(50)]
            for number, client in enumerate(clients):
                client.sendall(halves[number % len(halves)])
            clients[-1].shutdown(socket.SHUT_WR)
            assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 200
        for client in clients:
            with suppress(ConnectionResetError):
                while client.recv(1000):
                    pass
    assert decisions(ledger) == []


def test_a_length_that_is_no_number_is_refused(review: Review) -> None:
    with served(review) as port:
        for length in ("\u00b2", "9" * 5000, "-1", "", "1e3"):
            with socket.create_connection(("127.0.0.1", port), 20) as client:
                client.sendall(HEAD + f"Content-Length: {length}\r\n\r\n".encode("latin-1"))
                assert client.recv(1000).startswith(b"HTTP/1.1 400 "), length


def test_a_decision_that_cannot_be_written_is_said(
    browser: Browser, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(events: object) -> None:
        raise DataError("ledger.jsonl cannot be written: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(ledger, "append", full)
        response = browser.post(sample="1", decision="accept")
    assert response.status_code == 409
    assert "is not saved: ledger.jsonl cannot be written: No space left" in response.text
    assert browser.post(sample="1", decision="reject").status_code == 303
    assert decisions(ledger) == [("1", "reject", None)]


@pytest.mark.parametrize(
    "path", ["/image/../ledger.jsonl", "/image/%2e%2e/ledger.jsonl", "/image/3.jpg", "/x", "/sample/3"]
)
def test_nothing_else_is_served(browser: Browser, path: str) -> None:
    assert browser.get(path).status_code == 404


def test_its_files_are_served(browser: Browser) -> None:
    assert browser.get("/image/1.jpg").headers["Content-Type"] == "image/jpeg"
    script = browser.get("/review.js").text
    page = browser.get("/?before=0").text
    for name in re.findall(r'find\("(\w+)"\)|: "(\w+)"[,\s]', script):
        assert f'id="{"".join(name)}"' in page, name
    assert browser.get("/review.css").headers["Content-Type"] == "text/css; charset=utf-8"


def test_images_are_kept_by_browsers_while_this_review_runs(browser: Browser) -> None:
    (address,) = set(re.findall(r'id="zoom".*?src="(.*?)"', browser.get("/").text))
    assert browser.get(address).headers["Cache-Control"].startswith("private, max-age")
    for other in ("/image/0.jpg?v=0", "/"):
        assert browser.get(other).headers["Cache-Control"] == "no-store"


def test_the_next_sample_comes_behind_the_last_one_looked_at(browser: Browser) -> None:
    def shown(path: str) -> str:
        return re.findall(r"<h1>(.*?)</h1>", browser.get(path).text)[0]

    assert [shown(path) for path in ("/", "/?before=0", "/?before=1", "/?before=2", "/?before=nothing")] == [
        "Sample 0",
        "Sample 1",
        "Sample 2",
        "Sample 0",
        "Sample 0",
    ]
    browser.post(sample="1", decision="accept")
    assert shown("/?before=0") == "Sample 2" and shown("/?show=accepted&before=0") == "Sample 1"
    assert shown("/?show=rejected+by+review") == "Nothing is rejected by review."
    assert shown("/?show=everything&before=0") == "Sample 1"


def test_what_a_rule_rejected_is_shown_with_the_reason_and_can_be_accepted(ledger: Ledger, tmp_path: Path) -> None:
    fill(ledger, 2, lambda n: described(n, "raw"), refined)
    reason = "1 words, should be at least 9"
    ledger.append([kept(0), {"sample": "1", "step": "filter", "rule": "too_short", "reason": reason, "rules": "x"}])
    review, show = Review(ledger, tmp_path), "rejected by rule too_short"
    page = render_page(review, review.next_sample(show), show)
    assert "<h1>Sample 1</h1>" in page and f"{show}: {reason}" in page and "Skip" not in page
    assert f'<option value="{show}" selected>{show} (1)</option>' in page
    assert page_address(show, "1") == "/?show=rejected+by+rule+too_short&before=1"
    assert review.decide("1", "accept", "") is None and ledger.states()["1"].accepted
    assert review.verdicts() == {"waiting": 1, "accepted": 1}


def test_nothing_is_not_accepted_as_a_description(ledger: Ledger, tmp_path: Path) -> None:
    fill(ledger, 1, lambda n: described(n, ""), lambda n: refined(n, ""))
    ledger.append([{"sample": "0", "step": "filter", "rule": "too_short", "reason": "0 words", "rules": "x"}])
    review = Review(ledger, tmp_path)
    assert "there is no text to accept" in (review.decide("0", "accept", " ") or "")
    assert review.decide("0", "accept", "A red circle.") is None and ledger.states()["0"].text == "A red circle."


def test_corrections_are_shown_word_by_word() -> None:
    assert diff("A dog <b> runs.", "A big dog runs & jumps.") == (
        "A <ins>big</ins> dog <del>&lt;b&gt; runs.</del> <ins>runs &amp; jumps.</ins>"
    )
    assert diff("", "New.") == "<ins>New.</ins>" and diff("Same\ntext", "Same text") == "Same text"


@pytest.mark.parametrize(
    ("drawn_only", "heading", "step"),
    [
        (False, "Nothing waits for a decision.", "export"),
        (True, "Nothing has come as far as the review.", "filter"),
    ],
)
def test_the_last_page_says_what_to_type(
    ledger: Ledger, tmp_path: Path, drawn_only: bool, heading: str, step: str
) -> None:
    fill(ledger, 1, *([] if drawn_only else [lambda n: described(n, "raw"), refined, kept]))
    accept_rest(ledger)
    page = render_page(Review(ledger, tmp_path, ["--cfg-path", "my file.yaml"]), None)
    typed = command("curate", step, "--cfg-path", "my file.yaml")
    assert f"<h1>{heading}</h1>" in page and f"<pre>{escape(typed)}</pre>" in page and "'my file.yaml'" in typed


def test_only_this_machine_is_listened_to(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = []

    def run(self: object, sockets: list[socket.socket]) -> None:
        addresses.append(sockets[0].getsockname())
        with pytest.raises(ConfigError, match=r"curation\.port: \d+ cannot be used"):
            review_server.serve(addresses[0][1], ledger, tmp_path)
        raise KeyboardInterrupt

    monkeypatch.setattr("uvicorn.Server.run", run)
    review_server.serve(0, ledger, tmp_path)
    assert [host for host, _ in addresses] == ["127.0.0.1"]


def test_everything_can_be_accepted(browser: Browser, ledger: Ledger) -> None:
    assert accept_rest(ledger) == 3
    assert accept_rest(ledger) == 0
    assert [state.accepted for state in ledger.states().values()] == [True] * 3 + [False]

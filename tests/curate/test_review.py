"""The review page, by requests as a browser sends them."""

from __future__ import annotations

import http.client
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from html import escape
from pathlib import Path
from urllib.parse import urlencode

import pytest

from minigpt4.common.cli import command
from minigpt4.common.errors import ConfigError, DataError
from minigpt4.curate import review_server
from minigpt4.curate.ledger import Ledger, read_events
from minigpt4.curate.review import Review, accept_rest
from minigpt4.curate.review_page import diff, page_address, render_page
from minigpt4.curate.review_server import ReviewServer, serve
from tests.curate.conftest import described, fill, kept, refined, save_images

EVIL = '</textarea><script>alert("x")</script> & $token'


class Browser:
    """Talks to the page."""

    def __init__(self, server: ReviewServer) -> None:
        self.port = server.server_port
        self.token = server.review.token

    def open(self) -> socket.socket:
        """A connection over which nothing was sent yet."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def get(self, path: str, host: str | None = None) -> tuple[int, bytes, dict[str, str]]:
        return self._ask("GET", path, None, host)

    def post(self, host: str | None = None, **fields: str) -> tuple[int, bytes, dict[str, str]]:
        return self._ask("POST", "/decide", urlencode({"token": self.token} | fields), host)

    def _ask(self, method: str, path: str, body: str | None, host: str | None) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request(method, path, body, {"Host": host or f"127.0.0.1:{self.port}"})
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response.status, content, dict(response.headers)


@pytest.fixture
def browser(ledger: Ledger, tmp_path: Path) -> Iterator[Browser]:
    """Four samples: the first three wait, the fourth was not filtered yet."""
    fill(ledger, 3, lambda n: described(n, "raw"), lambda n: refined(n, EVIL if n == 0 else f"Text {n}."), kept)
    ledger.append([{"sample": "3", "step": "draw", "dataset": "d", "index": 3, "name": "n"}, described(3, "raw")])
    server = ReviewServer(0, Review(ledger, save_images(tmp_path / "image", 4)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield Browser(server)
    server.shutdown()
    thread.join()
    server.server_close()


def decisions(ledger: Ledger) -> list[tuple[str, str, str | None]]:
    events = read_events(ledger.path)
    return [(e["sample"], e["decision"], e.get("text")) for e in events if e["step"] == "review"]


def test_the_page_escapes_what_the_model_said(browser: Browser) -> None:
    status, content, headers = browser.get("/")
    page = content.decode()
    assert status == 200 and "script-src 'self'" in headers["Content-Security-Policy"]
    assert "&lt;/textarea&gt;&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; &amp; $token" in page
    assert "<script>alert" not in page
    assert 'src="/image/0.jpg?v=' in page and "4 drawn = 0 accepted + 0 rejected + 4 pending" in page


def test_every_decision_is_saved_at_once(browser: Browser, ledger: Ledger) -> None:
    status, _, headers = browser.post(sample="0", decision="reject", text=EVIL)
    assert (status, headers["Location"]) == (303, "/?before=0")
    assert decisions(ledger) == [("0", "reject", None)]
    browser.post(sample="1", decision="accept", text="Text 1.")
    browser.post(sample="2", decision="edit", text="Better\r\n text 2.")
    assert decisions(ledger)[1:] == [("1", "accept", None), ("2", "edit", "Better text 2.")]
    assert b"Nothing waits for a decision" in browser.get("/")[1]
    states = ledger.states()
    assert states["0"].rejected_by == "review"
    assert states["2"].accepted and states["2"].text == "Better text 2."


def test_a_decision_can_be_taken_back(browser: Browser, ledger: Ledger) -> None:
    browser.post(sample="1", decision="reject", text="Text 1.")
    page = browser.get("/sample/1")[1].decode()
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
    found, content, _ = browser.post(**fields)
    assert (found, message in content.decode()) == (status, True)
    assert decisions(ledger) == []


def test_other_sites_cannot_use_it(browser: Browser, ledger: Ledger) -> None:
    assert browser.get("/", host="evil.example:80")[0] == 403
    assert browser.post(host="evil.example:80", sample="1", decision="accept")[0] == 403
    assert decisions(ledger) == []


def test_other_pages_cannot_frame_it(browser: Browser) -> None:
    for path in ("/", "/sample/1", "/nothing"):
        headers = browser.get(path)[2]
        assert headers["X-Frame-Options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


HALF_A_REQUEST = (b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: 127", b"POST /decide HTTP/1.1\r\nContent-Length: 99\r\n")


@pytest.mark.parametrize("sent", HALF_A_REQUEST)
def test_half_a_request_is_dropped(browser: Browser, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(review_server, "CONNECTION_SECONDS", 0.1)
    with browser.open() as client:
        client.sendall(sent)
        while client.recv(1000):  # an answer such as 400 may come first; the end must
            pass


def test_a_client_that_sends_a_byte_now_and_then_is_dropped(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time limit for each byte would not do."""
    monkeypatch.setattr(review_server, "CONNECTION_SECONDS", 0.3)
    with browser.open() as client, pytest.raises(OSError):
        client.settimeout(0.05)
        while True:
            client.sendall(b"a")
            try:
                if client.recv(1000) == b"":
                    raise ConnectionResetError
            except TimeoutError:
                continue


def test_half_a_decision_is_not_recorded(browser: Browser, ledger: Ledger) -> None:
    body = urlencode({"token": browser.token, "sample": "1", "decision": "accept", "text": "Text 1, cut o"})
    head = f"POST /decide HTTP/1.1\r\nHost: 127.0.0.1:{browser.port}\r\nContent-Length: {len(body) + 9}\r\n\r\n"
    with browser.open() as client:
        client.sendall((head + body).encode())
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1000).startswith(b"HTTP/1.0 400 ")
    assert decisions(ledger) == []


@pytest.mark.parametrize("length", ["\u00b2", "9" * 5000, "-1", "", "1e3"])
def test_a_length_that_is_no_number_is_refused(browser: Browser, length: str) -> None:
    head = f"POST /decide HTTP/1.1\r\nHost: 127.0.0.1:{browser.port}\r\nContent-Length: {length}\r\n\r\n"
    with browser.open() as client:
        client.sendall(head.encode("latin-1"))
        assert client.recv(1000).startswith(b"HTTP/1.0 400 ")


def test_idle_connections_do_not_exhaust_it(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(review_server, "MAX_CONNECTIONS", 4)
    monkeypatch.setattr(review_server, "CONNECTION_SECONDS", 0.5)
    threads = threading.active_count()
    with ExitStack() as stack:
        clients = [stack.enter_context(browser.open()) for _ in range(20)]
        assert all(client.recv(1) == b"" for client in clients[4:])  # closed at once
        assert threading.active_count() <= threads + 4
        assert all(client.recv(1) == b"" for client in clients)  # their time is over
        assert browser.get("/")[0] == 200


def test_a_decision_that_cannot_be_written_is_said(
    browser: Browser, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(events: object) -> None:
        raise DataError("ledger.jsonl cannot be written: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(ledger, "append", full)
        status, content, _ = browser.post(sample="1", decision="accept")
    assert status == 409 and b"is not saved: ledger.jsonl cannot be written: No space left" in content
    assert browser.post(sample="1", decision="reject")[0] == 303
    assert decisions(ledger) == [("1", "reject", None)]


@pytest.mark.parametrize(
    "path", ["/image/../ledger.jsonl", "/image/%2e%2e/ledger.jsonl", "/image/3.jpg", "/x", "/sample/3"]
)
def test_nothing_else_is_served(browser: Browser, path: str) -> None:
    assert browser.get(path)[0] == 404


def test_its_files_are_served(browser: Browser) -> None:
    assert browser.get("/image/1.jpg")[2]["Content-Type"] == "image/jpeg"
    script = browser.get("/review.js")[1].decode()
    page = browser.get("/?before=0")[1].decode()
    for name in re.findall(r'find\("(\w+)"\)|: "(\w+)"[,\s]', script):
        assert f'id="{"".join(name)}"' in page or "".join(name) in ("nearest", "center"), name
    assert browser.get("/review.css")[0] == 200


def test_images_are_kept_by_browsers_while_this_review_runs(browser: Browser) -> None:
    (address,) = set(re.findall(r'id="zoom".*?src="(.*?)"', browser.get("/")[1].decode()))
    assert browser.get(address)[2]["Cache-Control"].startswith("private, max-age")
    assert browser.get("/image/0.jpg?v=0")[2]["Cache-Control"] == browser.get("/")[2]["Cache-Control"] == "no-store"


def test_the_next_sample_comes_behind_the_last_one_looked_at(browser: Browser) -> None:
    def shown(path: str) -> str:
        return re.findall(r"<h1>(.*?)</h1>", browser.get(path)[1].decode())[0]

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


def test_only_this_machine_is_listened_to(ledger: Ledger, tmp_path: Path) -> None:
    with ReviewServer(0, Review(ledger, tmp_path)) as server:
        assert server.server_address[0] == "127.0.0.1"
        with pytest.raises(ConfigError, match=r"curation\.port: \d+ cannot be used"):
            serve(server.server_port, ledger, tmp_path)


def test_everything_can_be_accepted(browser: Browser, ledger: Ledger) -> None:
    assert accept_rest(ledger) == 3
    assert accept_rest(ledger) == 0
    assert [state.accepted for state in ledger.states().values()] == [True] * 3 + [False]

"""The review page, by requests as a browser sends them."""

from __future__ import annotations

import http.client
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from minigpt4.common.errors import ConfigError
from minigpt4.curate.ledger import Ledger, read_events
from minigpt4.curate.review import Review, ReviewServer, accept_rest, serve
from tests.curate.conftest import described, fill, kept, refined, save_images

EVIL = '</textarea><script>alert("x")</script> & $token'


class Browser:
    """Talks to the page."""

    def __init__(self, server: ReviewServer) -> None:
        self.port = server.server_port
        self.token = server.review.token

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
    assert 'src="/image/0.jpg"' in page and "4 drawn = 0 accepted + 0 rejected + 4 pending" in page


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
    assert "decision: reject" in page and "Text 1." in page
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


@pytest.mark.parametrize(
    "path", ["/image/../ledger.jsonl", "/image/%2e%2e/ledger.jsonl", "/image/3.jpg", "/x", "/sample/3"]
)
def test_nothing_else_is_served(browser: Browser, path: str) -> None:
    assert browser.get(path)[0] == 404


def test_its_files_are_served(browser: Browser) -> None:
    assert browser.get("/image/1.jpg")[2]["Content-Type"] == "image/jpeg"
    script = browser.get("/review.js")[1].decode()
    page = browser.get("/")[1].decode()
    for button in re.findall(r'press\("(\w+)"\)|: "(\w+)"', script):
        assert f'id="{"".join(button)}"' in page or "".join(button) == "back"
    assert browser.get("/review.css")[0] == 200


def test_only_this_machine_is_listened_to(ledger: Ledger, tmp_path: Path) -> None:
    with ReviewServer(0, Review(ledger, tmp_path)) as server:
        assert server.server_address[0] == "127.0.0.1"
        with pytest.raises(ConfigError, match=r"curation\.port: \d+ cannot be used"):
            serve(server.server_port, ledger, tmp_path)


def test_everything_can_be_accepted(browser: Browser, ledger: Ledger) -> None:
    assert accept_rest(ledger) == 3
    assert accept_rest(ledger) == 0
    assert [state.accepted for state in ledger.states().values()] == [True] * 3 + [False]

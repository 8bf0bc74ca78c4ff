"""Decisions of a person, on a page that only this machine can open."""

from __future__ import annotations

import html
import logging
import secrets
from collections.abc import Iterator
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from string import Template
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from minigpt4.common.errors import ConfigError
from minigpt4.common.files import asset
from minigpt4.common.schema import Config
from minigpt4.curate.ledger import DECISIONS, PENDING, Case, Ledger, Tally, cases_of

logger = logging.getLogger(__name__)


class Review:
    """The samples that wait for a decision, and the decisions; shared by the page's threads.

    Args:
        ledger: Every decision is on the disk before the page goes on.
        pictures: Folder of {sample}.jpg.
    """

    def __init__(self, ledger: Ledger, pictures: Path) -> None:
        self.ledger = ledger
        self.pictures = pictures
        self.token = secrets.token_urlsafe(16)
        self._lock = Lock()
        self._cases = cases_of(ledger.events())

    def next_case(self) -> Case | None:
        """The first sample that waits for a decision."""
        return next(waiting(self._cases), None)

    def case(self, sample: str) -> Case | None:
        """A sample that has come as far as the review, decided or not."""
        case = self._cases.get(sample)
        return case if case is not None and (case.decision is not None or case in waiting(self._cases)) else None

    def tally(self) -> Tally:
        """Where all samples stand."""
        return Tally.of(self._cases)

    def decide(self, sample: str, decision: str, text: str) -> str | None:
        """Take a decision, a new one on a sample decided before as well.

        Returns:
            Why it cannot be taken; None: it is on the disk.
        """
        text = " ".join(text.split())
        with self._lock:
            case = self.case(sample)
            if case is None:
                return f"sample {sample!r} does not wait for a decision"
            if decision not in DECISIONS:
                return f"unknown decision {decision!r}; known: {', '.join(DECISIONS)}"
            if decision == "accept" and text and text != " ".join((case.text or "").split()):
                decision = "edit"  # what was typed must not be lost by the other button
            if decision == "edit" and not text:
                return "an edited text should not be empty; reject the sample instead"
            event = {"sample": sample, "step": "review", "decision": decision, "by": "person"}
            event |= {"text": text} if decision == "edit" else {}
            self.ledger.append([event])
            case.take(event)
        return None


def waiting(cases: dict[str, Case]) -> Iterator[Case]:
    """Samples that a decision is missing for."""
    return (case for case in cases.values() if case.status == PENDING and case.waits_for == "review")


def accept_rest(ledger: Ledger) -> int:
    """Accept everything that the rules kept and nobody decided on; how many these were."""
    cases = list(waiting(cases_of(ledger.events())))
    ledger.append({"sample": case.sample, "step": "review", "decision": "accept", "by": "all"} for case in cases)
    return len(cases)


HOST = "127.0.0.1"
LONGEST_FORM = 1 << 20
POLICY = "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; form-action 'self'"
FILES = {"/review.css": "text/css", "/review.js": "text/javascript"}


class ReviewServer(ThreadingHTTPServer):
    """Serves the page to this machine.

    Args:
        port: 0: any that is free (`server_port` says which).
        review: The samples and decisions.
    """

    daemon_threads = True

    def __init__(self, port: int, review: Review) -> None:
        super().__init__((HOST, port), _Handler)
        self.review = review


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer

    def do_GET(self) -> None:
        """The page, a picture, or one of the page's files."""
        if not self._from_this_machine():
            return
        path = unquote(urlsplit(self.path).path)
        review = self.server.review
        if path == "/":
            self._send(page(review, review.next_case()))
        elif path.startswith("/sample/"):
            case = review.case(path.removeprefix("/sample/"))
            self._send(page(review, case)) if case else self._refuse(HTTPStatus.NOT_FOUND, "no such sample to review")
        elif path.startswith("/image/") and review.case(path.removeprefix("/image/").removesuffix(".jpg")):
            self._send_picture(path.removeprefix("/image/"))
        elif path in FILES:
            with open(asset(f"review{path}"), "rb") as file:
                self._send(file.read(), FILES[path])
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing here")

    def do_POST(self) -> None:
        """A decision: form fields token, sample, decision and text."""
        length = self.headers.get("Content-Length", "")
        if not self._from_this_machine():
            return
        if self.path != "/decide" or not length.isdigit() or int(length) > LONGEST_FORM:
            self._refuse(HTTPStatus.BAD_REQUEST, "a form sent to /decide is expected")
            return
        form = parse_qs(self.rfile.read(int(length)).decode("utf-8", errors="replace"), keep_blank_values=True)
        token, sample, decision, text = (form.get(key, [""])[0] for key in ("token", "sample", "decision", "text"))
        if token != self.server.review.token:
            self._refuse(HTTPStatus.FORBIDDEN, "this page is of an earlier review; open it again")
            return
        problem = self.server.review.decide(sample, decision, text)
        if problem:
            self._refuse(HTTPStatus.CONFLICT, problem)
            return
        self.send_response(HTTPStatus.SEE_OTHER)
        self.send_header("Location", f"/?before={quote(sample)}")
        self.end_headers()

    def _from_this_machine(self) -> bool:
        """Refuse names that somebody else has pointed at this machine (DNS rebinding)."""
        host = (self.headers.get("Host") or "").rpartition(":")[0]
        if host in (HOST, "localhost"):
            return True
        self._refuse(HTTPStatus.FORBIDDEN, f"open this page as http://{HOST}:{self.server.server_port}/")
        return False

    def _send_picture(self, name: str) -> None:
        try:
            content = (self.server.review.pictures / name).read_bytes()
        except OSError:
            self._refuse(HTTPStatus.NOT_FOUND, "the picture is gone; run describe again")
            return
        self._send(content, "image/jpeg")

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self._send(html.escape(reason), "text/html", status)

    def _send(self, content: str | bytes, kind: str = "text/html", status: HTTPStatus = HTTPStatus.OK) -> None:
        body = content.encode("utf-8", errors="replace") if isinstance(content, str) else content
        self.send_response(status)
        self.send_header("Content-Type", kind if kind.startswith("image/") else f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: decisions are in the ledger."""


def page(review: Review, case: Case | None) -> str:
    """The page of one sample, or the last page; every text in it is escaped."""
    with open(asset(f"review/{'review' if case else 'done'}.html"), encoding="utf-8") as file:
        template = Template(file.read())
    values = {"tally": str(review.tally()), "token": review.token}
    if case is not None:
        values |= {
            "sample": case.sample,
            "picture": f"/image/{quote(case.sample)}.jpg",
            "name": str(case.drawn["name"]),
            "text": case.text or "",
            "description": case.texts[0] if case.texts else "",
            "decision": case.decision or "none yet",
        }
    return template.substitute({key: html.escape(value, quote=True) for key, value in values.items()})


def serve(cfg: Config, ledger: Ledger, pictures: Path) -> str:
    """Show the page until Ctrl-C.

    Raises:
        ConfigError: The port is taken.
    """
    try:
        server = ReviewServer(cfg.curation.port, Review(ledger, pictures))
    except (OSError, OverflowError) as error:
        raise ConfigError(f"curation.port: {cfg.curation.port} cannot be used ({error}); choose another") from error
    logger.info("open http://127.0.0.1:%d/ and end with Ctrl-C", server.server_port)
    with server, suppress(KeyboardInterrupt):
        server.serve_forever()
    return "ended; every decision is saved"

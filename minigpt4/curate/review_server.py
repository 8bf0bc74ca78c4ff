"""The server of the review page, which only this machine can open."""

from __future__ import annotations

import html
import logging
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from minigpt4.common.errors import ConfigError
from minigpt4.common.files import asset
from minigpt4.curate.ledger import Ledger
from minigpt4.curate.review import WAITING, Review
from minigpt4.curate.review_page import page_address, render_page

logger = logging.getLogger(__name__)
HOST = "127.0.0.1"
MAX_FORM_BYTES = 1 << 20
MAX_CONNECTIONS = 32
"""Connections served at a time, each by a thread; further ones are closed at once."""
CONNECTION_SECONDS = 15.0
"""Time for a request and its answer, after which the connection is closed."""
CONTENT_POLICY = (
    "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
FILES = {"/review.css": "text/css", "/review.js": "text/javascript"}
"""Files of the page -> their content types."""


def serve(port: int, ledger: Ledger, images: Path, arguments: Sequence[str] = ()) -> None:
    """Serve the page until Ctrl-C.

    Args:
        port: port of the page; 0: any free port.
        ledger: samples to review, and where the decisions are appended.
        images: folder of {sample}.jpg.
        arguments: arguments of the next step's command, which the last page names.

    Raises:
        ConfigError: The port is taken.
    """
    try:
        server = ReviewServer(port, Review(ledger, images, arguments))
    except OSError as error:
        raise ConfigError(f"curation.port: {port} cannot be used ({error}); choose another") from error
    logger.info("open http://%s:%d/ and end with Ctrl-C", HOST, server.server_port)
    with server, suppress(KeyboardInterrupt):
        server.serve_forever()


class ReviewServer(ThreadingHTTPServer):
    """Serves the page to this machine; slow clients cannot hold it.

    Args:
        port: port; 0: any free one, which `server_port` then is.
        review: samples and decisions.
    """

    daemon_threads = True

    def __init__(self, port: int, review: Review) -> None:
        super().__init__((HOST, port), _Handler)
        self.review = review
        self._since: dict[Any, float] = {}
        """Open connections, and when each was accepted."""

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection by a thread of its own, unless there are too many."""
        if len(self._since) >= MAX_CONNECTIONS:
            self.shutdown_request(request)
            return
        self._since[request] = time.monotonic()
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Close the connections whose time is over; `serve_forever` calls this twice a second."""
        latest = time.monotonic() - CONNECTION_SECONDS
        for request, since in list(self._since.items()):
            if since < latest:
                with suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)  # its thread then reads the end, and closes it

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        self._since.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Show an error's traceback, unless the client has only gone away."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer

    def do_GET(self) -> None:
        """The page, an image, or one of the page's files."""
        if not self._from_this_machine():
            return
        address = urlsplit(self.path)
        path, query = unquote(address.path), parse_qs(address.query)
        before, show = (query.get(key, [default])[0] for key, default in (("before", ""), ("show", WAITING)))
        review = self.server.review
        if path == "/":
            self._send(render_page(review, review.next_sample(show, before), show, before))
        elif path.startswith("/sample/"):
            state = review.sample(path.removeprefix("/sample/"))
            if state is None:
                self._refuse(HTTPStatus.NOT_FOUND, "no such sample to review")
            else:
                self._send(render_page(review, state, show, before))
        elif path.startswith("/image/") and review.sample(path.removeprefix("/image/").removesuffix(".jpg")):
            try:
                content = (review.images / path.removeprefix("/image/")).read_bytes()
            except OSError:
                self._refuse(HTTPStatus.NOT_FOUND, "the image is missing; run describe again")
            else:
                kept = query.get("v") == [review.version]
                self._send(content, "image/jpeg", cache="private, max-age=86400" if kept else "no-store")
        elif path in FILES:
            self._send(Path(asset(f"review{path}")).read_bytes(), FILES[path])
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing here")

    def do_POST(self) -> None:
        """A decision: form fields token, sample, decision and text."""
        if not self._from_this_machine():
            return
        body = self._read_form()
        if self.path != "/decide" or body is None:
            self._refuse(HTTPStatus.BAD_REQUEST, "expected a complete form sent to /decide")
            return
        form = parse_qs(body.decode("utf-8", errors="replace"), keep_blank_values=True)
        names = ("token", "sample", "decision", "text", "show")
        token, sample, decision, text, show = (form.get(name, [""])[0] for name in names)
        if token != self.server.review.token:
            self._refuse(HTTPStatus.FORBIDDEN, "this page is of an earlier review; open it again")
            return
        problem = self.server.review.decide(sample, decision, text)
        if problem:
            self._refuse(HTTPStatus.CONFLICT, problem)
            return
        self.send_response(HTTPStatus.SEE_OTHER)
        self.send_header("Location", page_address(show or WAITING, sample))
        self.end_headers()

    def _read_form(self) -> bytes | None:
        """The body; None where it is too long, or its end is missing: half a text must not become the sample's."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or len(length) > len(str(MAX_FORM_BYTES)) or int(length) > MAX_FORM_BYTES:
            return None
        body = self.rfile.read(int(length))
        return body if len(body) == int(length) else None

    def _from_this_machine(self) -> bool:
        """Refuse other host names: any site can point one at this machine (DNS rebinding)."""
        host = (self.headers.get("Host") or "").rpartition(":")[0]
        if host in (HOST, "localhost"):
            return True
        self._refuse(HTTPStatus.FORBIDDEN, f"open this page as http://{HOST}:{self.server.server_port}/")
        return False

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self._send(html.escape(reason), "text/html", status)

    def _send(
        self,
        content: str | bytes,
        kind: str = "text/html",
        status: HTTPStatus = HTTPStatus.OK,
        cache: str = "no-store",
    ) -> None:
        body = content.encode("utf-8", errors="replace") if isinstance(content, str) else content
        self.send_response(status)
        self.send_header("Content-Type", kind if kind.startswith("image/") else f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", CONTENT_POLICY)
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", cache)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: decisions are in the ledger."""

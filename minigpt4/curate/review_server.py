"""The server of the review page, which only this machine can open."""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import uvicorn
from fastapi import FastAPI, Form, HTTPException, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse, RedirectResponse
from starlette.exceptions import HTTPException as AnyHTTPException

from minigpt4.common.errors import ConfigError
from minigpt4.common.files import asset
from minigpt4.common.listening import LOCAL, KnownNamesOnly
from minigpt4.curate.ledger import Ledger, SampleState
from minigpt4.curate.review import WAITING, Review
from minigpt4.curate.review_page import page_address, render_page

logger = logging.getLogger(__name__)
LAST_SECONDS = 5
"""Time that unfinished requests have when the server ends."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
"""Headers of every answer, unless it has others."""
FILES = ("review.css", "review.js")
"""Files of the page."""


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
        listening = socket.create_server((LOCAL, port))
    except OSError as error:
        raise ConfigError(f"curation.port: {port} cannot be used ({error}); choose another") from error
    with listening, suppress(KeyboardInterrupt):
        logger.info("open http://%s:%d/ and end with Ctrl-C", LOCAL, listening.getsockname()[1])
        build_server(Review(ledger, images, arguments)).run(sockets=[listening])


def build_server(review: Review) -> uvicorn.Server:
    """The server; `run` it on a socket that listens on this machine only."""
    config = uvicorn.Config(
        build_app(review),
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,  # decisions are in the ledger
        timeout_graceful_shutdown=LAST_SECONDS,
    )
    return uvicorn.Server(config)


def build_app(review: Review) -> FastAPI:
    """The page as an application.

    Args:
        review: samples and decisions.
    """
    page = _Page(review)
    app = FastAPI(openapi_url=None, exception_handlers={AnyHTTPException: _refuse})
    app.add_middleware(KnownNamesOnly, listening=LOCAL)
    app.middleware("http")(_add_headers)
    app.get("/")(page.next_sample)
    app.get("/sample/{sample:path}")(page.one_sample)
    app.get("/image/{sample:path}.jpg")(page.image)
    app.get("/{name}")(page.file)
    app.post("/decide")(page.decide)
    return app


class _Page:
    """What is answered to each address; a sample is given by its id."""

    def __init__(self, review: Review) -> None:
        self.review = review

    def next_sample(self, show: str = WAITING, before: str = "") -> Response:
        return self._shown(self.review.next_sample(show, before), show, before)

    def one_sample(self, sample: str, show: str = WAITING, before: str = "") -> Response:
        return self._shown(self._found(sample), show, before)

    def image(self, sample: str, v: str = "") -> Response:
        try:
            content = (self.review.images / f"{self._found(sample).sample}.jpg").read_bytes()
        except OSError as error:
            raise HTTPException(404, "the image is missing; run describe again") from error
        headers = {"Cache-Control": "private, max-age=86400"} if v == self.review.version else {}
        return Response(content, headers=headers, media_type="image/jpeg")

    def file(self, name: str) -> Response:
        if name not in FILES:
            raise HTTPException(404, "there is nothing here")
        return FileResponse(asset(f"review/{name}"))

    def decide(
        self,
        token: Annotated[str, Form()] = "",
        sample: Annotated[str, Form()] = "",
        decision: Annotated[str, Form()] = "",
        text: Annotated[str, Form()] = "",
        show: Annotated[str, Form()] = WAITING,
    ) -> Response:
        if token != self.review.token:
            raise HTTPException(403, "this page is of an earlier review; open it again")
        if problem := self.review.decide(sample, decision, text):
            raise HTTPException(409, problem)
        return RedirectResponse(page_address(show, sample), 303)

    def _found(self, sample: str) -> SampleState:
        state = self.review.sample(sample)
        if state is None:
            raise HTTPException(404, "no such sample to review")
        return state

    def _shown(self, state: SampleState | None, show: str, before: str) -> Response:
        return HTMLResponse(render_page(self.review, state, show, before).encode(errors="replace"))


async def _add_headers(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await answer(request)
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response


async def _refuse(_: Request, error: AnyHTTPException) -> Response:
    return PlainTextResponse(error.detail, error.status_code)

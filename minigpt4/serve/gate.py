"""Which requests come in: with the right key, not too many at a time, and none any more when the server is ending."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from minigpt4.serve.protocol import error_content

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

CHAT = "/v1/chat/completions"
"""Path of the requests for answers."""
OPEN = ("/health",)
"""Paths that need no key."""
DRAINED_BYTES = 200_000_000
DRAINED_SECONDS = 20.0
"""How much of a refused request is read and thrown away: many clients read no answer before they have sent all."""


class Gate:
    """Refuses what must not come in, and counts requests for answers from their first byte to the last of the answer.

    The bodies of requests that wait are in memory, so there are at most as many as can be answered or wait.

    Args:
        app: gets the requests that come in.
        most: requests for answers at a time.
        key: what requests must bring as `Authorization: Bearer KEY`; None: nothing.
        count: called with the status of each answer.

    Attributes:
        closed: whether requests for answers are refused, because the server is ending.
        inside: requests for answers that came in and are not answered completely.
    """

    def __init__(self, app: ASGIApp, most: int, key: str | None, count: Callable[[int], None]) -> None:
        self.closed = False
        self.inside = 0
        self._app = app
        self._most = most
        self._expected = b"" if key is None else f"Bearer {key}".encode()
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        received = False

        async def noting() -> Message:
            nonlocal received
            message = await receive()
            received = not message.get("more_body", False)
            return message

        async def draining(message: Message) -> None:
            if message["type"] == "http.response.start":
                if scope["path"] == CHAT:
                    self._count(message["status"])
                if not received:
                    with suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(_drain(noting), DRAINED_SECONDS)
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, noting, draining)
            return
        self.inside += scope["path"] == CHAT
        try:
            await self._app(scope, noting, draining)
        finally:
            self.inside -= scope["path"] == CHAT

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        given = Headers(scope=scope).get("authorization", "").encode("latin-1")
        guarded = self._expected and scope["path"] not in OPEN
        if guarded and not secrets.compare_digest(given, self._expected):
            message = "a key is missing or wrong; send it as 'Authorization: Bearer KEY' (OpenAI(api_key=...))"
            return JSONResponse(
                error_content(message, 401, code="invalid_api_key"), 401, {"WWW-Authenticate": "Bearer"}
            )
        if scope["path"] != CHAT:
            return None
        if self.closed:
            message = "the server is ending; ask again when it has been started again"
            return JSONResponse(error_content(message, 503, code="ending"), 503)
        if self.inside >= self._most:
            message = f"{self.inside} requests are here already, as many as may (serving.waiting); ask again later"
            return JSONResponse(error_content(message, 429, code="queue_full"), 429, {"Retry-After": "1"})
        return None


def refuse_foreign(addresses: str) -> JSONResponse:
    """The answer to a request by another name, or from another site's page.

    Args:
        addresses: what the server is known as.
    """
    message = (
        f"this server answers programs of this machine, at {addresses}, and no page of another site; started with "
        "a key (--api-key-env), it answers to any name"
    )
    return JSONResponse(error_content(message, 403, code="unknown_host"), 403)


async def _drain(receive: Receive) -> None:
    """Read the rest of a request's body, within bounds."""
    left = DRAINED_BYTES
    while left > 0:
        message = await receive()
        left -= len(message.get("body", b""))
        if not message.get("more_body", False):
            return

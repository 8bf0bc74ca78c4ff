"""The server process: it listens, and when it is told to end, it finishes what it has begun."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from minigpt4.serve.engine import Engine
from minigpt4.serve.gate import Gate

logger = logging.getLogger(__name__)
LAST_SECONDS = 5
"""Time in which connections are closed when all work has ended."""
HEADER_SECONDS = 10
"""Time for which a connection stays open without a request, or with the beginning of one."""


class ImpatientProtocol(H11Protocol):
    """Closes a connection whose next request does not come in time.

    uvicorn does so after the first request only, and not once a byte of the next has come: connections that never ask
    would take all that a process may have, and they need no key.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called for a new connection."""
        super().connection_made(transport)
        self._wait_since(self.loop.time())

    def data_received(self, data: bytes) -> None:
        """Called for what comes."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is None:
            self._wait_since(self._idle_since)

    def on_response_complete(self) -> None:
        """Called when a request is answered."""
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def _wait_since(self, moment: float) -> None:
        self._idle_since = moment
        self.timeout_keep_alive_task = self.loop.call_at(moment + HEADER_SECONDS, self.timeout_keep_alive_handler)


class DrainingServer(uvicorn.Server):
    """Told to end (SIGTERM, Ctrl-C), it refuses new requests and answers those it has; told again, it ends at once.

    Args:
        app: what is served.
        gate: the gate of `app`.
        engine: the engine behind it.
        grace: seconds that running requests have.
        address: host and port to listen on; port 0: any free one.
        announce: called when it listens.
    """

    def __init__(
        self,
        app: ASGIApp,
        gate: Gate,
        engine: Engine,
        grace: float,
        address: tuple[str, int],
        announce: Callable[[], object],
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                *address,
                http=ImpatientProtocol,
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                timeout_keep_alive=HEADER_SECONDS,
                timeout_graceful_shutdown=LAST_SECONDS,
            )
        )
        self._gate = gate
        self._engine = engine
        self._grace = grace
        self._deadline = 0.0
        self._announce = announce

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal ends it."""
        with suppress(KeyboardInterrupt):  # how uvicorn passes a second Ctrl-C on, when all is closed
            super().run(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Called at the beginning."""
        await super().startup(sockets)
        self._announce()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called for a signal."""
        if self._gate.closed:
            super().handle_exit(sig, frame)
            return
        self._gate.closed = True
        self._deadline = time.monotonic() + self._grace
        logger.info("ending: %d requests are finished first; a second signal ends at once", self._gate.inside)

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; whether to end."""
        if self._gate.closed and not self.should_exit:
            late = time.monotonic() > self._deadline
            if late:
                await asyncio.to_thread(self._engine.close)  # its questions end with an error, which is answered
            self.should_exit = late or not self._gate.inside
        return await super().on_tick(counter)

"""The server's addresses: chat completions as OpenAI's clients ask for them, models, health and metrics."""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from minigpt4.api import LoadedModel
from minigpt4.common.errors import DataError, MiniGPT4Error
from minigpt4.common.schema import ServingConfig
from minigpt4.serve.conversation import check_size, read_messages
from minigpt4.serve.engine import Engine, EngineClosedError, QueueFullError
from minigpt4.serve.gate import CHAT, Gate
from minigpt4.serve.image_features import SentImage
from minigpt4.serve.images import ImageSource
from minigpt4.serve.metrics import Metrics
from minigpt4.serve.protocol import (
    ChatRequest,
    RequestError,
    chunk,
    completion,
    error_content,
    read_request,
    usage,
)
from minigpt4.serve.reply import CANCELLED, Question, Reply

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

UPLOAD_SECONDS = 60.0
"""Time that a client has to send its request."""
DECODERS = max(1, min(4, os.cpu_count() or 1))
"""Requests whose images are decoded at the same time: the largest image takes a gigabyte while it is."""
CLIENT_HAS_GONE = 499
"""Status of a request whose client has disconnected; it is only counted."""


def create_app(
    engine: Engine,
    models: Mapping[str, LoadedModel],
    settings: ServingConfig,
    *,
    key: str | None = None,
    images: ImageSource | None = None,
) -> Gate:
    """What is answered to each address.

    Args:
        engine: answers for all models.
        models: models by name; the first answers requests that name none.
        settings: section `serving` of the configuration.
        key: what requests must bring as `Authorization: Bearer KEY`; None: nothing.
        images: brings the images of requests; None: data URLs only.

    Returns:
        The application behind its gate.
    """
    chat = ChatCompletions(engine, models, settings, images or ImageSource(None, int(settings.max_request_mb * 1e6)))
    metrics = chat.metrics
    started = int(time.time())
    app = FastAPI(title="MiniGPT-4", docs_url=None, redoc_url=None, openapi_url=None)
    gate = Gate(app, settings.waiting + engine.rows, key, metrics.count_request)
    app.add_exception_handler(RequestError, _refuse)
    app.add_exception_handler(MiniGPT4Error, _refuse)
    app.add_exception_handler(HTTPException, _refuse)
    app.add_exception_handler(ClientDisconnect, _refuse)
    app.add_exception_handler(Exception, _refuse)
    app.add_api_route(CHAT, chat.answer, methods=["POST"])

    def card(name: str) -> dict[str, Any]:
        own = {"id": name, "object": "model", "created": started, "owned_by": "minigpt4"}
        return own | {"max_model_len": engine.context}

    @app.get("/v1/models")
    def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [card(name) for name in models]}

    @app.get("/v1/models/{name:path}")
    def one_model(name: str) -> dict[str, Any]:
        chat.model(name)
        return card(name)

    @app.get("/metrics")
    def metrics_text() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.api_route("/health", methods=["GET", "HEAD"])
    def health() -> Response:
        well = engine.alive and not gate.closed
        return JSONResponse({"status": "ok" if well else "ending"}, 200 if well else 503)

    return gate


class ChatCompletions:
    """Answers requests for chat completions.

    Args:
        engine: answers for all models.
        models: models by name; the first answers requests that name none.
        settings: section `serving` of the configuration.
        images: brings the images of requests.
    """

    def __init__(
        self, engine: Engine, models: Mapping[str, LoadedModel], settings: ServingConfig, images: ImageSource
    ) -> None:
        self.engine = engine
        self.models = models
        self.metrics = Metrics(engine)
        self._max_bytes = int(settings.max_request_mb * 1e6)
        self._images = images
        self._decoders = anyio.CapacityLimiter(DECODERS)

    def model(self, name: str | None) -> LoadedModel:
        """The model of a name; None: the first.

        Raises:
            RequestError: There is none.
        """
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise RequestError(
                f"there is no model {name!r}; there is {', '.join(self.models)}",
                404,
                param="model",
                code="model_not_found",
            )
        return self.models[name]

    async def answer(self, request: Request) -> Response:
        """The answer to a request, at once or as a stream.

        Raises:
            RequestError: The request cannot be used.
            MiniGPT4Error: The same, or there is no room for it.
        """
        asked = read_request(await read_body(request, self._max_bytes))
        model = self.model(asked.model)
        question = await self._question(asked, model)
        changed, loop = asyncio.Event(), asyncio.get_running_loop()
        reply = self.engine.submit(question, lambda: _set(changed, loop))
        name = asked.model or next(iter(self.models))
        head = f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), name
        if asked.stream:
            return Stream(self._events(reply, changed, head, asked.wants_usage), lambda: self._end(reply))
        try:
            await _first_of(changed.wait(), _gone(request))
        finally:
            self._end(reply)
        if reply.error is not None:
            return _refuse(request, reply.error)  # raised, it would end the connection as well
        if not reply.done or reply.finish == CANCELLED:
            return Response(status_code=CLIENT_HAS_GONE)
        tokens = usage(len(question.ids), reply.tokens)
        return JSONResponse(completion(*head, reply.answer.text, reply.finish, tokens))

    async def _question(self, asked: ChatRequest, model: LoadedModel) -> Question:
        encoder, context = model.model.encoder, self.engine.context
        conversation = read_messages(asked.messages)
        check_size(conversation, encoder, context)
        ids = await anyio.to_thread.run_sync(conversation.ids, encoder, model.prompt)
        room = context - len(ids)
        if len(ids) > encoder.max_context_len or room < 1:
            raise RequestError(
                f"messages: the prompt has {len(ids):,} tokens with its images, which leaves no room for an answer in "
                f"{context:,} (serving.context, model.max_context_len); shorten the conversation",
                param="messages",
                code="context_length_exceeded",
            )
        files = [(await self._images.file(url, place), place) for place, url in conversation.images]

        def decode() -> list[SentImage]:
            # One after the other: decoded, an image may take a thousand times the memory of its file.
            return [SentImage(model.image_processor(file, place)) for file, place in files]

        return Question(
            model=model,
            ids=ids,
            settings=asked.generation(model.defaults, room),
            images=await anyio.to_thread.run_sync(decode, limiter=self._decoders) if files else (),
            stops=tuple(asked.stop),
            seed=asked.seed,
            grows=bool(asked.stream),
        )

    async def _events(
        self, reply: Reply, changed: asyncio.Event, head: tuple[str, int, str], wants_usage: bool
    ) -> AsyncIterator[str]:
        """The answer as server-sent events."""
        shown = ""
        yield _event(chunk(*head, {"role": "assistant", "content": ""}))
        while True:
            done, text = reply.done, reply.answer.text
            if len(text) > len(shown) and text.startswith(shown):
                yield _event(chunk(*head, {"content": text[len(shown) :]}))
                shown = text
            if done:
                break
            await changed.wait()
            changed.clear()
        if reply.error is not None:
            yield _event(refusal(reply.error)[1])
            return
        yield _event(chunk(*head, {}, reply.finish))
        if wants_usage:
            tokens = usage(len(reply.question.ids), reply.tokens)
            yield _event(chunk(*head, {}) | {"choices": [], "usage": tokens})
        yield "data: [DONE]\n\n"

    def _end(self, reply: Reply) -> None:
        """End the work on a reply, which is done, or its client has gone."""
        reply.cancel()
        self.metrics.count_reply(reply)


class Stream(StreamingResponse):
    """Server-sent events.

    Args:
        events: the events.
        end: called when all are sent or the client has gone, perhaps before the first.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], end: Callable[[], None]) -> None:
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._end()


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body of a request.

    Args:
        request: the request.
        max_bytes: largest body; what comes is counted, whatever the headers say.

    Raises:
        RequestError: It is larger, or does not come.
    """
    content = bytearray()

    async def read() -> None:
        async for part in request.stream():
            content.extend(part)
            if len(content) > max_bytes:
                raise RequestError(
                    f"the request has more than {max_bytes / 1e6:g} MB (serving.max_request_mb); send smaller images",
                    413,
                    code="request_too_large",
                )

    try:
        await asyncio.wait_for(read(), UPLOAD_SECONDS)
    except asyncio.TimeoutError as error:
        raise RequestError(f"the request was not complete after {UPLOAD_SECONDS:g} s", 408) from error
    return bytes(content)


def refusal(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """HTTP status, content and headers of what is answered where an error came up."""
    if isinstance(error, RequestError):
        return error.status, error.content, {}
    if isinstance(error, QueueFullError):
        seconds = str(max(1, math.ceil(error.seconds)))
        return 429, error_content(str(error), 429, code="queue_full"), {"Retry-After": seconds}
    if isinstance(error, EngineClosedError):
        return 503, error_content(str(error), 503, code="ending"), {}
    if isinstance(error, MiniGPT4Error):
        return 400, error_content(str(error), 400, "messages" if isinstance(error, DataError) else None), {}
    if isinstance(error, HTTPException):
        message = f"{error.detail}; ask by POST {CHAT}, or by GET /v1/models, /health or /metrics"
        return error.status_code, error_content(message, error.status_code), dict(error.headers or {})
    if isinstance(error, ClientDisconnect):
        return CLIENT_HAS_GONE, {}, {}
    return 500, error_content("an error of the server, which its terminal shows", 500), {}


def _refuse(request: Request, error: Exception) -> Response:
    status, content, headers = refusal(error)
    return JSONResponse(content, status, headers)


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _set(changed: asyncio.Event, loop: asyncio.AbstractEventLoop) -> None:
    """Called by the engine's thread."""
    with suppress(RuntimeError):  # the server has ended
        loop.call_soon_threadsafe(changed.set)


async def _gone(request: Request) -> None:
    """Return when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _first_of(*waits: Any) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()

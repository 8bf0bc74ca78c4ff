"""One request to a chat-completions endpoint: its answer, or what went wrong and whether to try again."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any

from minigpt4.curate.refiners.retry import retry_after

LARGEST = 1 << 22
"""Bytes of an answer; a correction needs a thousandth of it."""
WRONG_SETTINGS = frozenset({400, 401, 403, 404, 405, 422})
"""Answers that no repetition changes."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the endpoint answered: the text, and tokens by `prompt_tokens` and `completion_tokens`."""

    text: str
    usage: dict[str, int]


class RequestFailed(Exception):  # noqa: N818 - it is an event, not a mistake
    """A request without a usable answer.

    Attributes:
        fatal: No other request can succeed with these settings.
        wait: Seconds the server asks to wait for; None: it says nothing.
        usage: Tokens that were paid for nevertheless.
    """

    def __init__(
        self, reason: str, *, fatal: bool = False, wait: float | None = None, usage: Mapping[str, int] | None = None
    ) -> None:
        super().__init__(reason)
        self.fatal = fatal
        self.wait = wait
        self.usage = dict(usage or {})


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: following it would show the key to somebody else."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A chat-completions endpoint.

    Attributes:
        url: Of `/chat/completions`.
        key: Sent as bearer token; None: none is.
        timeout: Seconds a request may take altogether.
    """

    url: str
    key: str | None = field(repr=False)
    timeout: float

    def ask(self, body: Mapping[str, Any]) -> Reply:
        """Send one request.

        Raises:
            RequestFailed: It has no usable answer.
        """
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers, method="POST")
        try:
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=self.timeout) as response:
                return reply_of(_read(response, time.monotonic() + self.timeout), response.headers.get_content_type())
        except urllib.error.HTTPError as error:
            with error:
                said = " ".join(error.read(400).decode("utf-8", errors="replace").split())[:200]
            wait = retry_after(error.headers.get("Retry-After"))
            fatal = error.code in WRONG_SETTINGS or 300 <= error.code < 400
            raise RequestFailed(f"HTTP {error.code}: {said or error.reason}", fatal=fatal, wait=wait) from error
        except TimeoutError as error:
            raise RequestFailed(f"no whole answer within {self.timeout:g} s") from error
        except (urllib.error.URLError, HTTPException, OSError) as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, TimeoutError):
                raise RequestFailed(f"no whole answer within {self.timeout:g} s") from error
            raise RequestFailed(
                f"no connection to {self.url}, or it broke: {reason or type(error).__name__}"
            ) from error


def _read(response: Any, deadline: float) -> bytes:
    """The whole body; the deadline holds for all of it, not for each packet."""
    content = bytearray()
    while piece := response.read1(65536):
        content += piece
        if len(content) > LARGEST:
            raise RequestFailed(f"the answer is longer than {LARGEST:,} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError
    expected = response.headers.get("Content-Length")
    if expected and expected.isdigit() and len(content) < int(expected):
        raise RequestFailed(f"the answer breaks off after {len(content):,} of {int(expected):,} bytes")
    return bytes(content)


def reply_of(content: bytes, content_type: str = "application/json") -> Reply:
    """The text in an answer's body.

    Raises:
        RequestFailed: It is no JSON of the expected form, or the text was cut.
    """
    text = content.decode("utf-8", errors="replace").strip()
    if content_type == "text/html" or text[:1] == "<":
        raise RequestFailed(f"HTML instead of JSON: {' '.join(text.split())[:80]!r}")
    try:
        body = json.loads(text)
    except ValueError as error:
        raise RequestFailed(f"no whole JSON ({error}): {text[:80]!r}") from error
    usage = _usage(body)
    try:
        choice = body["choices"][0]
        answer = choice["message"]["content"]
        finish = choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise RequestFailed(f"no choices[0].message.content in {text[:80]!r}", usage=usage) from error
    if finish == "length":
        raise RequestFailed("the answer was cut at curation.refine.max_tokens; raise it", usage=usage)
    if not isinstance(answer, str) or not answer.strip():
        raise RequestFailed("the answer is empty", usage=usage)
    return Reply(answer, usage)


def _usage(body: Any) -> dict[str, int]:
    """Tokens as the endpoint counts them; what it does not say counts as none."""
    said = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(said, dict):
        return {}
    keys = ("prompt_tokens", "completion_tokens")
    return {key: said[key] for key in keys if type(said.get(key)) is int and said[key] >= 0}

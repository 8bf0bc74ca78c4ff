"""Correction by a language model behind an OpenAI-compatible chat-completions endpoint."""

from __future__ import annotations

import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from random import Random
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

from minigpt4.common.errors import ConfigError
from minigpt4.common.registry import refiners
from minigpt4.common.schema import Config
from minigpt4.curate.refiners.base import Correction, RefineError, Refiner, checked, correction_request

logger = logging.getLogger(__name__)


def retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds that a `Retry-After` header asks for, a number or a date (RFC 9110, 10.2.3); None: it says nothing."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=timezone.utc)
    return max(0.0, (when - (now or datetime.now(timezone.utc))).total_seconds())


def delay(attempt: int, asked: float | None, base: float, longest: float, generator: Random) -> float:
    """Seconds before the next attempt.

    Args:
        attempt: Attempts made so far, from 1.
        asked: What the server asked for, if anything; waited for in full, up to `longest`.
        base: Before the second attempt; doubled each time.
        longest: At most.
        generator: Of the jitter, a factor from 0.5 to 1, so that those who failed together do not come back together.
    """
    backoff = min(longest, base * 2.0 ** (attempt - 1)) * generator.uniform(0.5, 1.0)
    return min(longest, max(backoff, asked or 0.0))


class RateLimit:
    """Lets so many requests go in a minute, evenly spaced; shared by threads.

    Args:
        per_minute: Requests; None: as many as come.
        clock: Seconds that only go forward.
        sleep: Waits.
    """

    def __init__(
        self,
        per_minute: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.spacing = 60.0 / per_minute if per_minute else 0.0
        self.clock = clock
        self.sleep = sleep
        self._next = 0.0
        self._lock = Lock()

    def wait(self) -> None:
        """Come back when the next request may go."""
        with self._lock:
            now = self.clock()
            start = max(now, self._next)
            self._next = start + self.spacing
        if start > now:
            self.sleep(start - now)


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


@refiners.register("endpoint")
class EndpointRefiner(Refiner):
    """Asks an endpoint, and again after errors that pass, waiting longer each time.

    Args:
        cfg: The configuration.
        sleep: Waits between attempts.

    Raises:
        ConfigError: An address, model, key or number that cannot be used.
    """

    def __init__(self, cfg: Config, sleep: Callable[[float], None] = time.sleep) -> None:
        settings = cfg.curation.refine
        _check(cfg)
        self.settings = settings
        self.seed = cfg.curation.seed
        self.concurrency = settings.concurrency
        self.request = correction_request(settings.prompt_path)
        key = os.environ[settings.api_key_env] if settings.api_key_env else None
        self.endpoint = Endpoint(settings.base_url.rstrip("/") + "/chat/completions", key, settings.timeout)
        self.rate = RateLimit(settings.requests_per_minute, sleep=sleep)
        self.sleep = sleep

    def refine(self, sample: str, texts: Sequence[str]) -> Correction:
        """The endpoint's correction of the main description; errors as for `Refiner.refine`."""
        usage: Counter[str] = Counter()
        body = {
            "model": self.settings.model,
            "messages": [{"role": "user", "content": f"{self.request}\n\n{texts[0]}"}],
            "temperature": self.settings.temperature,
            "max_tokens": self.settings.max_tokens,
        }
        for attempt in range(1, self.settings.attempts + 1):
            self.rate.wait()
            try:
                reply = self.endpoint.ask(body)
                usage.update(reply.usage)
                return checked(reply.text, texts[0], self.settings.min_overlap, usage)
            except (RequestFailed, RefineError) as error:
                if isinstance(error, RequestFailed):
                    usage.update(error.usage)
                fatal = isinstance(error, RequestFailed) and error.fatal
                if fatal or attempt == self.settings.attempts:
                    raise RefineError(f"{error} (attempt {attempt})", usage, fatal=fatal) from error
                asked = error.wait if isinstance(error, RequestFailed) else None
                generator = Random(f"{self.seed}-{sample}-{attempt}")
                seconds = delay(attempt, asked, self.settings.backoff, self.settings.max_backoff, generator)
                logger.info("sample %s: %s; again in %.1f s", sample, error, seconds)
                self.sleep(seconds)
        raise AssertionError("unreachable: the last attempt returns or raises")


def _check(cfg: Config) -> None:
    settings, key = cfg.curation.refine, "curation.refine"
    address = urlsplit(settings.base_url)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ConfigError(
            f"{key}.base_url: {settings.base_url!r} should be an address such as http://127.0.0.1:8000/v1"
        )
    if not settings.model:
        raise ConfigError(
            f"{key}.model is not set; name the model as the endpoint calls it, by --options {key}.model=NAME"
        )
    if settings.api_key_env and not os.environ.get(settings.api_key_env):
        raise ConfigError(f"{key}.api_key_env: the environment variable {settings.api_key_env} is not set; export it")

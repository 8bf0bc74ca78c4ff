"""Correction by a language model behind an OpenAI-compatible chat-completions endpoint."""

from __future__ import annotations

import json
import logging
import os
import re
import ssl
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from random import Random
from threading import Lock
from typing import Any

import httpx

from minigpt4.common.errors import ConfigError
from minigpt4.common.registry import refiners
from minigpt4.common.schema import RefineConfig
from minigpt4.curate.refiners.base import Correction, RefineError, Refiner, read_request, validate_correction

logger = logging.getLogger(__name__)
MAX_ANSWER_BYTES = 1 << 22
"""Longest body of an answer; a correction needs a thousandth of it."""
FATAL_STATUSES = frozenset({*range(300, 400), 400, 401, 403, 404, 405, 422})
"""Answers that no repetition changes. A redirect is one: following it would show the key to another server."""
SHOWN = 200
"""Characters of an unusable answer that the error shows."""


@refiners.register("endpoint")
class EndpointRefiner(Refiner):
    """Asks an endpoint, and repeats failed requests, waiting longer each time.

    Args:
        settings: endpoint, limits and request.
        seed: part of the names of the jitter's random generators.
        sleep: waits for a number of seconds.

    Raises:
        ConfigError: The URL, model, key or prompt file cannot be used.
    """

    def __init__(
        self,
        settings: RefineConfig,
        *,
        seed: int,
        sleep: Callable[[float], None] = time.sleep,
        **_: Any,
    ) -> None:
        self.settings = settings
        self.seed = seed
        self.concurrency = settings.concurrency
        self.request = read_request(settings.prompt_path)
        self.url = _completions_url(settings.base_url)
        if not settings.model:
            raise ConfigError(
                "curation.refine.model is not set; name the model as the endpoint calls it, by --options "
                "curation.refine.model=NAME"
            )
        key = _read_key(settings.api_key_env)
        # JSON may escape any character: "a\/b", "a\u002Fb".
        spelled = (rf"(?:\\?{re.escape(character)}|\\u(?i:{ord(character):04x}))" for character in key or "")
        self._key = re.compile("".join(spelled)) if key else None
        # Compressed answers would have to be unpacked before their size is known.
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self._client = httpx.Client(
            headers=headers,
            timeout=settings.timeout,
            limits=httpx.Limits(max_connections=settings.concurrency),
            verify=ssl.create_default_context(),  # the system's certificates, where companies add their own
        )
        self._rate = RateLimit(settings.requests_per_minute, sleep=sleep)
        self._sleep = sleep

    def refine(self, sample: str, texts: Sequence[str]) -> Correction:
        """The endpoint's correction of the main description; arguments and errors as for `Refiner.refine`."""
        settings = self.settings
        usage: Counter[str] = Counter()
        attempt = 0
        while True:
            attempt += 1
            self._rate.wait()
            try:
                correction = self._correct(texts[0])
                usage.update(correction.usage)
                return replace(correction, usage=usage)
            except RefineError as error:
                usage.update(error.usage)
                if error.fatal or attempt == settings.attempts:
                    raise RefineError(f"{error} (attempt {attempt})", usage, fatal=error.fatal) from error
                generator = Random(f"{self.seed}-{sample}-{attempt}")
                seconds = delay(attempt, error.retry_after, settings.backoff, settings.max_backoff, generator)
                logger.info("sample %s: %s; next attempt in %.1f s", sample, error, seconds)
                self._sleep(seconds)

    def _correct(self, description: str) -> Correction:
        """One attempt; errors as for `Refiner.refine`."""
        response, content = self._post(
            {
                "model": self.settings.model,
                "messages": [{"role": "user", "content": f"{self.request}\n\n{description}"}],
                "temperature": self.settings.temperature,
                "max_tokens": self.settings.max_tokens,
            }
        )
        text = content.decode("utf-8", errors="replace").strip()
        excerpt = " ".join(self._redact(text).split())[:SHOWN]
        if not response.is_success:
            raise RefineError(
                f"HTTP {response.status_code}: {excerpt or self._redact(response.reason_phrase)}",
                fatal=response.status_code in FATAL_STATUSES,
                retry_after=parse_retry_after(response.headers.get("Retry-After")),
            )
        if response.headers.get("Content-Type", "").startswith("text/html") or text.startswith("<"):
            raise RefineError(f"HTML instead of JSON: {excerpt!r}")
        answer, usage = parse_completion(text, excerpt)
        if self._key and self._key.search(answer):
            raise RefineError("the answer holds the key of curation.refine.api_key_env", usage)
        return validate_correction(answer, description, self.settings.min_overlap, usage)

    def _post(self, body: Mapping[str, Any]) -> tuple[httpx.Response, bytes]:
        """The response to a request, and its body.

        Raises:
            RefineError: There is no complete response in time, or it is too long.
        """
        deadline = time.monotonic() + self.settings.timeout
        late = f"no complete answer within {self.settings.timeout:g} s"
        content = bytearray()
        try:
            with self._client.stream("POST", self.url, json=body) as response:
                # httpx limits the time of each read; the deadline limits that of all of them.
                for piece in response.iter_bytes():
                    content += piece
                    if len(content) > MAX_ANSWER_BYTES:
                        raise RefineError(f"the answer is longer than {MAX_ANSWER_BYTES:,} bytes")
                    if time.monotonic() > deadline:
                        raise RefineError(late)
        except httpx.TimeoutException as error:
            raise RefineError(late) from error
        except httpx.HTTPError as error:
            reason = self._redact(str(error)) or type(error).__name__
            raise RefineError(f"no connection to {self.url}, or it broke: {reason}") from error
        return response, bytes(content)

    def _redact(self, text: str) -> str:
        """`text` without the key: a server may echo it, and messages go to the log and the ledger."""
        return self._key.sub("[key]", text) if self._key else text


def parse_completion(text: str, excerpt: str) -> tuple[str, dict[str, int]]:
    """The generated text of a chat completion, and the tokens that it took by `prompt_tokens` and `completion_tokens`.

    Args:
        text: body of the response.
        excerpt: part of it that messages show.

    Raises:
        RefineError: It is not JSON of the expected form, or the generated text is empty or cut.
    """
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RefineError(f"incomplete or broken JSON ({error}): {excerpt!r}") from error
    counts = body.get("usage") if isinstance(body, dict) else None
    usage: dict[str, int] = {}
    for key in ("prompt_tokens", "completion_tokens"):
        value = counts.get(key) if isinstance(counts, dict) else None
        if type(value) is int and value >= 0:
            usage[key] = value
    try:
        choice = body["choices"][0]
        answer, finish = choice["message"]["content"], choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise RefineError(f"no choices[0].message.content in {excerpt!r}", usage) from error
    if finish == "length":
        raise RefineError("the answer was cut at curation.refine.max_tokens; raise it", usage)
    if not isinstance(answer, str) or not answer.strip():
        raise RefineError("the answer is empty", usage)
    return answer, usage


def parse_retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds that a `Retry-After` header asks for, as a number or a date (RFC 9110, 10.2.3); None: it does not say.

    Args:
        value: header's value; None: there is no such header.
        now: current time; default: the system's.
    """
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


def delay(attempt: int, retry_after: float | None, base: float, longest: float, generator: Random) -> float:
    """Seconds before the next attempt.

    Args:
        attempt: attempts made so far, from 1.
        retry_after: seconds that the server asks for, if any; respected up to `longest`.
        base: seconds before the second attempt, doubled each time.
        longest: upper limit in seconds.
        generator: source of the jitter, a factor from 0.5 to 1 that spreads requests which failed together.
    """
    backoff = min(longest, base * 2.0 ** (attempt - 1)) * generator.uniform(0.5, 1.0)
    return min(longest, max(backoff, retry_after or 0.0))


class RateLimit:
    """Spaces requests evenly; shared by threads.

    Args:
        per_minute: requests a minute; None: no limit.
        clock: monotonic time in seconds.
        sleep: waits for a number of seconds.
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
        """Return when the next request may be sent."""
        with self._lock:
            now = self.clock()
            start = max(now, self._next)
            self._next = start + self.spacing
        if start > now:
            self.sleep(start - now)


def _completions_url(base_url: str) -> str:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.userinfo:
        raise ConfigError(
            "curation.refine.base_url should hold no user name or password, which messages would show; name the "
            "environment variable of the key in curation.refine.api_key_env"
        )
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"curation.refine.base_url: {base_url!r} should be a URL such as http://127.0.0.1:8000/v1")
    return base_url.rstrip("/") + "/chat/completions"


def _read_key(variable: str | None) -> str | None:
    if not variable:
        return None
    key = os.environ.get(variable)
    if not key:
        raise ConfigError(f"curation.refine.api_key_env: the environment variable {variable} is not set; export it")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            f"curation.refine.api_key_env: the environment variable {variable} holds characters that no key has; "
            "export it again"
        )
    return key

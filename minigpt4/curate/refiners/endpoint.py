"""Correction by a language model behind an OpenAI-compatible chat-completions endpoint."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from urllib.parse import urlsplit

from minigpt4.common.errors import ConfigError
from minigpt4.common.registry import refiners
from minigpt4.common.schema import Config
from minigpt4.curate.refiners.base import Correction, RefineError, Refiner, checked
from minigpt4.curate.refiners.http import Endpoint, RequestFailed
from minigpt4.curate.refiners.request import correction_request
from minigpt4.curate.refiners.retry import RateLimit, delay

logger = logging.getLogger(__name__)


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
    for name, least in (("attempts", 1), ("concurrency", 1), ("max_tokens", 1)):
        if getattr(settings, name) < least:
            raise ConfigError(f"{key}.{name}: {getattr(settings, name)} should be at least {least}")
    for name in ("timeout", "requests_per_minute"):
        value = getattr(settings, name)
        if value is not None and value <= 0:
            raise ConfigError(f"{key}.{name}: {value} should be above 0")
    if settings.backoff < 0 or settings.max_backoff < 0:
        raise ConfigError(f"{key}.backoff and {key}.max_backoff should be at least 0")

"""What the server tells Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from minigpt4.serve.engine import Engine
from minigpt4.serve.reply import Reply

SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
"""Upper bounds of the histograms' bins."""


class Metrics:
    """Counts requests, and reads the engine's own numbers when it is asked for them.

    Args:
        engine: what answers.
    """

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineNumbers(engine))
        self._requests = Counter(
            "minigpt4_requests", "Chat completions by the status of their answer.", ["status"], registry=self._registry
        )
        self._first = Histogram(
            "minigpt4_first_token_seconds",
            "From a request to its first token.",
            buckets=SECONDS,
            registry=self._registry,
        )
        self._complete = Histogram(
            "minigpt4_answer_seconds", "From a request to its last token.", buckets=SECONDS, registry=self._registry
        )

    def count_request(self, status: int) -> None:
        """Count a request that was answered with an HTTP status."""
        self._requests.labels(str(status)).inc()

    def count_reply(self, reply: Reply) -> None:
        """Count the times of a reply that is done."""
        if reply.first is not None:
            self._first.observe(reply.first - reply.asked)
        if reply.ended is not None:
            self._complete.observe(reply.ended - reply.asked)

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineNumbers(Collector):
    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def collect(self) -> Iterator[Metric]:
        engine, features = self.engine, self.engine.features
        yield GaugeMetricFamily("minigpt4_rows", "Answers that can be worked on at the same time.", engine.rows)
        yield GaugeMetricFamily("minigpt4_running", "Answers that are worked on.", engine.running)
        yield GaugeMetricFamily("minigpt4_waiting", "Requests that wait for a row.", engine.waiting)
        yield CounterMetricFamily("minigpt4_prompt_tokens", "Tokens of prompts, with images.", engine.prompt_tokens)
        yield CounterMetricFamily("minigpt4_answer_tokens", "Tokens generated.", engine.answer_tokens)
        yield CounterMetricFamily("minigpt4_images_encoded", "Images that were encoded.", features.misses)
        yield CounterMetricFamily("minigpt4_images_known", "Images whose features were kept.", features.hits)
        yield GaugeMetricFamily("minigpt4_features_bytes", "Memory of the features that are kept.", features.bytes)

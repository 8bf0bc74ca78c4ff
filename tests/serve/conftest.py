"""One engine on two checkpoints of the tiny model, and a server in front of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed (pip install -e '.[serve]')")

from minigpt4.api import LoadedModel
from minigpt4.common.files import asset
from minigpt4.common.schema import ServingConfig, override_generation
from minigpt4.conversation.template import with_image_tag
from minigpt4.serve.engine import Engine
from minigpt4.serve.image_features import SentImage
from minigpt4.serve.reply import Question

SETTINGS = ServingConfig(rows=4, waiting=10, max_request_mb=1.0)


@pytest.fixture(scope="session")
def pair(tiny: LoadedModel) -> dict[str, LoadedModel]:
    """The tiny model with two projections, by name."""
    return {"aligned": tiny, "stage1": tiny.with_projection(asset("tiny/stage1.pth"))}


@pytest.fixture(scope="session")
def engine(pair: dict[str, LoadedModel]) -> Iterator[Engine]:
    """Four rows, and room for ten questions that wait."""
    with Engine(list(pair.values()), SETTINGS) as running:
        yield running


def question(
    model: LoadedModel,
    image: Any = None,
    text: str | None = None,
    *,
    stops: tuple[str, ...] = (),
    seed: int | None = None,
    grows: bool = True,
    **settings: Any,
) -> Question:
    """A question about one image, or none."""
    asked = text or model.prompt
    return Question(
        model=model,
        ids=model.model.encoder.prompt(asked if image is None else with_image_tag(asked), int(image is not None)),
        settings=override_generation(model.defaults, settings),
        images=() if image is None else [SentImage(one) for one in model.pixels([image])],
        stops=stops,
        seed=seed,
        grows=grows,
    )


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for another thread; fails after half a minute."""
    latest = time.monotonic() + 30
    while not true():
        assert time.monotonic() < latest, "it did not happen"
        time.sleep(0.002)


class Standstill:
    """Holds the lock that the engine needs for each of its steps."""

    def __init__(self, model: LoadedModel) -> None:
        self._lock = model.lock
        self._lock.acquire()
        self._held = True

    def release(self) -> None:
        """Let the engine go on."""
        if self._held:
            self._held = False
            self._lock.release()


@pytest.fixture
def standstill(tiny: LoadedModel) -> Iterator[Standstill]:
    """The engine computes nothing until this is released, or the test ends."""
    held = Standstill(tiny)
    yield held
    held.release()


class Server:
    """A server in a thread of this process.

    Attributes:
        address: what clients take as `base_url`.
        gate: counts its requests.
    """

    def __init__(self, engine: Engine, models: dict[str, LoadedModel], **options: Any) -> None:
        from minigpt4.serve.app import create_app
        from minigpt4.serve.server import DrainingServer

        self.gate = create_app(engine, models, SETTINGS, **options)
        listening = threading.Event()
        address = ("127.0.0.1", 0)
        self.server = DrainingServer(self.gate, self.gate, engine, grace=20, address=address, announce=listening.set)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        assert listening.wait(30)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.address = f"http://127.0.0.1:{port}/v1"

    def end(self) -> None:
        """As a signal would."""
        self.server.handle_exit(15, None)
        self.thread.join(30)


@pytest.fixture(scope="session")
def server(engine: Engine, pair: dict[str, LoadedModel]) -> Iterator[Server]:
    """Serves both checkpoints to anybody on this machine."""
    running = Server(engine, pair)
    yield running
    running.end()

"""A ledger with samples in any state, and a chat-completions server that misbehaves on request."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from minigpt4.common.schema import ModelConfig, RefineConfig
from minigpt4.curate.ledger import Event, Ledger
from minigpt4.curate.refine import refine

TEXT = "There is a large red circle at the top of the image."
PROMPTS = Path(__file__).parents[2] / "prompts"
Behaviour = Callable[[BaseHTTPRequestHandler], None]


def drawn(number: int) -> Event:
    return {"sample": str(number), "step": "draw", "dataset": "shards", "index": number, "name": f"00000/{number}"}


def described(number: int, *texts: str) -> Event:
    return {"sample": str(number), "step": "describe", "texts": list(texts), "continued": 0}


def refined(number: int, text: str = TEXT, **more: Any) -> Event:
    return {"sample": str(number), "step": "refine", "text": text, **more}


def kept(number: int) -> Event:
    return {"sample": str(number), "step": "filter", "rule": None, "reason": None, "rules": "x"}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """An empty ledger, open for writing."""
    with Ledger(tmp_path / "curation" / "ledger.jsonl") as opened:
        yield opened


def fill(ledger: Ledger, count: int, *steps: Callable[[int], Event]) -> None:
    """Draw `count` samples and append the events of `steps` to each."""
    ledger.append(step(number) for number in range(count) for step in (drawn, *steps))


def save_images(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (8, 8), (number * 20, 0, 0)).save(folder / f"{number}.jpg")
    return folder


def answer(content: Any, **more: Any) -> str:
    """The body of a valid chat completion."""
    choice = {"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    return json.dumps({"choices": [choice | more], "usage": usage})


def send(handler: BaseHTTPRequestHandler, body: str, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in (
        {"Content_Type": "application/json", "Content_Length": str(len(body.encode()))} | headers
    ).items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body.encode())


def says(body: str, status: int = 200, **headers: str) -> Behaviour:
    """Sends this response."""
    return lambda handler: send(handler, body, status, **headers)


def breaks_off(handler: BaseHTTPRequestHandler) -> None:
    """Promises more bytes than it sends."""
    send(handler, answer(TEXT)[:40], Content_Length="500")


def hangs_up(handler: BaseHTTPRequestHandler) -> None:
    """Closes the connection without a response."""
    handler.close_connection = True


def says_nothing(handler: BaseHTTPRequestHandler) -> None:
    """Keeps the connection open without a response, longer than the client waits."""
    server = handler.server
    assert isinstance(server, FakeServer)
    server.released.wait(10)


def drips(handler: BaseHTTPRequestHandler) -> None:
    """Sends byte by byte, so that no single read takes too long."""
    send(handler, "", Content_Length="1000")
    server = handler.server
    assert isinstance(server, FakeServer)
    while not server.released.is_set():
        try:
            handler.wfile.write(b" ")
        except OSError:
            return
        time.sleep(0.02)


@dataclass
class FakeServer(ThreadingHTTPServer):
    """Shows one behaviour a request; after the last, answers properly."""

    daemon_threads = True
    behaviours: list[Behaviour] = field(default_factory=list)
    requests: list[tuple[dict[str, Any], dict[str, str]]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that closes the connection is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((body, dict(self.headers)))
        behaviours = self.server.behaviours
        (behaviours.pop(0) if behaviours else says(answer(TEXT)))(self)

    def do_GET(self) -> None:
        self.server.requests.append(({}, dict(self.headers)))

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    thread = threading.Thread(target=fake.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield fake
    fake.released.set()
    fake.shutdown()
    thread.join()
    fake.server_close()


def endpoint_settings(url: str = "http://127.0.0.1:1/v1", **changes: Any) -> RefineConfig:
    """Settings of the endpoint refiner: one attempt, and no wait between attempts."""
    settings: dict[str, Any] = {"model": "m", "timeout": 5.0, "attempts": 1, "backoff": 0.0, "max_backoff": 0.0}
    settings |= {"base_url": url, "prompt_path": str(PROMPTS / "curation_refine.txt"), "concurrency": 1}
    return RefineConfig(**(settings | changes))


def refine_all(settings: RefineConfig, ledger: Ledger) -> Counter[str]:
    return refine(settings, ledger, model=ModelConfig(), seed=42, device="cpu")


def steps_of(events: Sequence[Event], step: str) -> list[Event]:
    return [event for event in events if event["step"] == step]

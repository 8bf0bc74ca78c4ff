"""Many visitors of the chat page at once, some of whom leave early or send nonsense: each gets its own answer."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx

from minigpt4.common.files import PROJECT
from tests.drawn import drawn_scenes
from tests.faults.outcomes import Outcome, Tally

CLIENTS = 50
QUESTIONS = ("What is in the image?", "How many objects are there?", "Describe it.")
TOKENS = 24
"""Longest answers."""
WARM_UP = 0.25
"""Share of the time after which memory is measured for the first time."""
GROWTH = 0.05
"""Memory that may be added after that."""
OURS = re.compile(rf'File "{re.escape(str(PROJECT))}/minigpt4/[^"]+", line \d+, in (?!__call__)')
"""A line of our own in a traceback; `__call__` passes requests on to Gradio, which reports nonsense in its log."""
TIMEOUT = 120.0
"""Seconds after which an answer is taken for lost, also with fifty others before it on a slow machine."""


@dataclass
class Page:
    """The page, as its visitors' browsers call it.

    Attributes:
        address: its address, with a slash at the end.
        images: image files that are asked about.
        events: numbers of its event handlers by name.
        answers: (kind of request, image, question) -> the answer when nobody else asks.
    """

    address: str
    images: Sequence[Path]
    events: dict[str, int] = field(default_factory=dict)
    answers: dict[tuple[str, int, str], Any] = field(default_factory=dict)

    async def open(self, client: httpx.AsyncClient) -> None:
        """Find the event handlers, and ask every question once."""
        config = (await client.get(f"{self.address}config")).json()
        self.events = {entry["api_name"]: entry["id"] for entry in config["dependencies"]}
        for number in range(len(self.images)):
            for question in QUESTIONS:
                for kind in ("ask", "describe"):
                    self.answers[kind, number, question] = await self.answer(client, kind, number, question)

    async def answer(self, client: httpx.AsyncClient, kind: str, number: int, question: str) -> Any:
        """The conversation (ask) or the text (describe) that answers a question about an image."""
        path = await self.upload(client, self.images[number].read_bytes())
        async for message in self.messages(client, kind, self.inputs(kind, path, question)):
            if message["msg"] == "process_completed":
                assert message["success"], message
                data = message["output"]["data"]
                return data[0] if kind == "describe" else [(t["question"], t["answer"]) for t in data[1]["turns"]]
        raise AssertionError("the stream ended without an answer")

    async def upload(self, client: httpx.AsyncClient, content: bytes) -> str:
        """Path of an uploaded image on the server."""
        response = await client.post(f"{self.address}gradio_api/upload", files={"files": ("a.png", content)})
        path: str = response.raise_for_status().json()[0]
        return path

    def inputs(self, kind: str, path: str, question: str, tokens: Any = TOKENS) -> list[Any]:
        """The values of an event."""
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        settings = [tokens, 1, False, 1.0, 0.9, 1.0]
        return (
            [None, {"text": question, "files": [file]}, "", *settings] if kind == "ask" else [file, question, *settings]
        )

    async def messages(self, client: httpx.AsyncClient, kind: str, inputs: list[Any]) -> AsyncIterator[dict[str, Any]]:
        """What the page sends about an event, to the end or until the caller stops reading."""
        session = os.urandom(6).hex()
        body = {"data": inputs, "fn_index": self.events[kind], "session_hash": session}
        joined = await client.post(f"{self.address}gradio_api/queue/join", json=body)
        joined.raise_for_status()
        async with client.stream(
            "GET", f"{self.address}gradio_api/queue/data", params={"session_hash": session}
        ) as events:
            async for line in _lines(events):
                message = json.loads(line.removeprefix(b"data: "))
                if message["msg"] == "close_stream":
                    return
                yield message


async def _lines(events: httpx.Response) -> AsyncIterator[bytes]:
    """The lines of a stream that are not empty; unlike those of httpx, they may hold U+2028, as in a browser."""
    rest = b""
    async for part in events.aiter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        for line in filter(None, lines):
            yield line


async def visit(page: Page, visitors: int, goes_on: Callable[[int], bool], seed: int) -> Tally:
    """Send requests until it is enough.

    Args:
        page: the page, which nobody else uses.
        visitors: clients at the same time.
        goes_on: whether a client that has sent this many requests sends another one.
        seed: names the requests.
    """
    tally = Tally(f"chat page: {visitors} visitors at once")
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)  # the server hangs up on nonsense
    async with httpx.AsyncClient(timeout=TIMEOUT, limits=limits) as client:
        await page.open(client)

        async def visitor(number: int) -> None:
            draw = Random(f"{seed}-{number}")
            sent = 0
            while goes_on(sent):
                sent += 1
                request = draw.choices((_asked, _left, _nonsense), (6, 2, 2))[0]
                try:
                    problem = await request(page, client, draw)
                except Exception as error:
                    tally.add(Outcome.lost, f"{request.__name__}: {type(error).__name__}: {error}")
                else:
                    tally.add(Outcome.wrong if problem else Outcome.survived, problem or "")

        await asyncio.gather(*map(visitor, range(visitors)))
    return tally


async def _asked(page: Page, client: httpx.AsyncClient, draw: Random) -> str | None:
    """Ask, and compare the answer; what is wrong with it."""
    question = draw.choice(("ask", "describe")), draw.randrange(len(page.images)), draw.choice(QUESTIONS)
    answer = await page.answer(client, *question)
    expected = page.answers[question]
    return None if answer == expected else f"{question}: {str(answer)[:300]} instead of {str(expected)[:300]}"


async def _left(page: Page, client: httpx.AsyncClient, draw: Random) -> None:
    """Ask, and leave before the answer is there."""
    path = await page.upload(client, draw.choice(page.images).read_bytes())
    left = draw.randint(1, 6)
    async for _ in page.messages(client, "ask", page.inputs("ask", path, draw.choice(QUESTIONS))):
        left -= 1
        if not left:
            return


async def _nonsense(page: Page, client: httpx.AsyncClient, draw: Random) -> str | None:
    """Something that no browser sends: it is refused, or answered by a message."""
    kind = draw.choice(("ask", "describe"))
    form = draw.choice(("image", "path", "settings", "text", "body", "address"))
    if form in ("body", "address"):
        path = "gradio_api/queue/join" if form == "body" else f"gradio_api/{draw.getrandbits(40)}"
        response = await client.post(page.address + path, content=draw.randbytes(100))
        return None if response.status_code >= 400 else f"{form}: status {response.status_code}"
    content = page.images[0].read_bytes()
    path = await page.upload(client, content[:20] + draw.randbytes(80) if form == "image" else content)
    path = draw.choice(("/etc/passwd", "../a.png", "a\0b", "")) if form == "path" else path
    text = "\ud7ff\u2028<b>" * 3000 if form == "text" else QUESTIONS[0]
    tokens = draw.choice((0, -1, 10**9, 0.5, "many", None, [])) if form == "settings" else TOKENS
    async for message in page.messages(client, kind, page.inputs(kind, path, text, tokens)):
        if message["msg"] == "process_completed":
            return None
    return f"{form}: no message"


def soak(folder: Path, seconds: float, seed: int, visitors: int = CLIENTS) -> Tally:
    """Visit a page of its own process for a while.

    The tally also has its memory, which may grow by GROWTH after the warm-up, and its log, in which no exception of the
    project may stand.
    """
    folder.mkdir(parents=True)
    images = [Path(scene.save(folder / f"{number}.png")) for number, scene in enumerate(drawn_scenes())]
    log = folder / "log.txt"
    environment = os.environ | {"GRADIO_TEMP_DIR": str(folder / "uploads"), "OMP_NUM_THREADS": "2"}
    with log.open("w") as file:
        server = subprocess.Popen(
            [sys.executable, str(PROJECT / "demo.py")], cwd=folder, env=environment, stdout=file, stderr=file
        )
    try:
        page = Page(_address(server, log), images)
        begun = time.monotonic()
        memory: list[int] = []

        def goes_on(_: int) -> bool:
            passed = time.monotonic() - begun
            if passed > WARM_UP * seconds:
                memory.append(_resident(server.pid))
            return passed < seconds

        tally = asyncio.run(visit(page, visitors, goes_on, seed))
    finally:
        server.terminate()
        server.wait()
    text = log.read_text(errors="replace")
    ours = [part for part in text.split("Traceback (most recent call last)")[1:] if OURS.search(part)]
    tally.add(Outcome.wrong if ours else Outcome.survived, f"{len(ours)} tracebacks: {ours[:1]}")
    early, late = (
        sorted(part)[len(part) // 2] for part in (memory[: len(memory) // 5 + 1], memory[-len(memory) // 5 - 1 :])
    )
    grown = late / early - 1
    sys.stderr.write(
        f"memory of the page: {early / 2**20:,.0f} MiB, at the end {late / 2**20:,.0f} MiB ({grown:+.1%})\n"
    )
    tally.add(Outcome.wrong if grown > GROWTH else Outcome.survived, f"memory grew by {grown:.1%}")
    return tally


def _address(server: subprocess.Popen[bytes], log: Path) -> str:
    """The address that the server prints when it is ready."""
    while server.poll() is None:
        for line in log.read_text().splitlines():
            if "http://" in line:
                return line[line.index("http://") :].split()[0].rstrip("/") + "/"
        time.sleep(0.2)
    raise RuntimeError(f"the page did not start: {log.read_text()}")


def _resident(pid: int) -> int:
    """Memory of a process in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

"""Requests a second of the server, beside `transformers serve` on the exported model, and its memory over time.

`python -m benchmarks.serve` exports the tiny model first. Both servers run at the same time and are asked in turns, the
same questions about the same images, no image twice; the texts must be equal. `--soak 2000` then asks that many more.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from statistics import median

import httpx
import psutil
import torch

from benchmarks.machine import describe_machine
from minigpt4.common.files import PROJECT, asset
from minigpt4.scenes.drawing import draw_scene
from minigpt4.scenes.sampling import sample_split

CLIENTS = (1, 8, 32)
ROUNDS = 3
REQUESTS = 96
"""Requests of a round, to each server, of each number of clients."""
UNCOUNTED = 16
"""Requests in front of each round: a server that was not asked for seconds is slow at first."""
OURS_ONLY = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""What the package sets in this process, and the other server would not have."""
QUESTION = "Describe this image in detail."
SIDE = 224
"""Side of the images in pixels."""
STARTING = 300.0
"""Seconds that a server may take to start."""
FEATURES = 0.004
"""GiB of features that ours keeps: no image is asked about twice, and the memory stops growing after 300 of them."""
END = "###"
"""What `transformers serve` leaves at the end of an answer, and the tiny model's answers end with."""


def data_urls(seed: int) -> Iterator[str]:
    """Images that were never asked about."""
    number = 0
    while True:
        for placed in sample_split("test", 200, seed=Random(f"{seed}-{number}").randrange(2**31)):
            file = io.BytesIO()
            draw_scene(placed, SIDE).save(file, "PNG")
            yield f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        number += 1


class Server:
    """A server in a process of its own.

    Args:
        name: what it is.
        command: starts it.
        port: where it listens.
        model: name of the model there.
    """

    def __init__(self, name: str, command: Sequence[str], port: int, model: str) -> None:
        self.name = name
        self.model = model
        self.address = f"http://127.0.0.1:{port}"
        environment = {key: value for key, value in os.environ.items() if key not in OURS_ONLY}
        self.process = subprocess.Popen(
            command, cwd=PROJECT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def memory(self) -> float:
        """Resident memory in MB."""
        return psutil.Process(self.process.pid).memory_info().rss / 1e6

    def wait(self) -> None:
        """Return when it answers."""
        latest = time.monotonic() + STARTING
        while time.monotonic() < latest and self.process.poll() is None:
            try:
                httpx.get(f"{self.address}/health", timeout=5)
                return
            except httpx.TransportError:
                time.sleep(0.5)
        raise SystemExit(f"{self.name} did not start")

    async def ask(self, urls: Sequence[str], clients: int) -> tuple[float, list[str]]:
        """Seconds and texts of one request about each image, by clients that each have one at a time."""
        waiting = list(enumerate(urls))[::-1]
        texts = [""] * len(urls)
        limits = httpx.Limits(max_connections=clients)
        async with httpx.AsyncClient(timeout=600, limits=limits) as http:

            async def client() -> None:
                while waiting:
                    number, url = waiting.pop()
                    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
                    asked = {"model": self.model, "messages": [{"role": "user", "content": content}]}
                    asked |= {"max_tokens": 80, "temperature": 0.0}
                    response = await http.post(f"{self.address}/v1/chat/completions", json=asked)
                    response.raise_for_status()
                    text = response.json()["choices"][0]["message"]["content"]
                    texts[number] = text.partition(END)[0].strip()

            start = time.perf_counter()
            await asyncio.gather(*(client() for _ in range(clients)))
            return time.perf_counter() - start, texts


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """A server that answers, until the end of the block."""
    try:
        server.wait()
        yield server
    finally:
        server.process.send_signal(signal.SIGTERM)
        try:
            server.process.wait(30)
        except subprocess.TimeoutExpired:
            server.process.kill()


def free_port() -> int:
    """A free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def compare(ours: Server, theirs: Server, all_clients: Sequence[int]) -> None:
    """Print requests a second of both, in turns, for each number of clients."""
    images = data_urls(0)
    print(f"{'clients':>8} {ours.name:>12} {theirs.name:>20} {'ratio':>7}   requests a second, medians of {ROUNDS}")
    different: list[tuple[str, str]] = []
    asked = 0
    for clients in all_clients:
        seconds: dict[str, list[float]] = {ours.name: [], theirs.name: []}
        for _ in range(ROUNDS):
            urls = [next(images) for _ in range(REQUESTS)]
            texts = []
            for server in (ours, theirs):
                asyncio.run(server.ask([next(images) for _ in range(UNCOUNTED)], clients))
                taken, told = asyncio.run(server.ask(urls, clients))
                seconds[server.name].append(taken)
                texts.append(told)
            different += [pair for pair in zip(*texts, strict=True) if pair[0] != pair[1]]
            asked += len(urls)
        rates = [REQUESTS / median(seconds[server.name]) for server in (ours, theirs)]
        print(f"{clients:8} {rates[0]:12.2f} {rates[1]:20.2f} {rates[0] / rates[1]:7.2f}", flush=True)
    print(f"texts: {asked - len(different)} of {asked} equal")
    for mine, other in different:
        print(f"  {ours.name}: {mine}\n  {theirs.name}: {other}")


def soak(server: Server, requests: int) -> None:
    """Print the memory of a server while it answers."""
    images = data_urls(1)
    step = max(1, requests // 8)
    for done in range(0, requests + 1, step):
        if done:
            asyncio.run(server.ask([next(images) for _ in range(step)], 8))
        print(f"after {done:5} requests: {server.memory():8.1f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS, metavar="N", help="numbers of clients")
    parser.add_argument("--soak", type=int, default=0, metavar="N", help="then ask N more, and show the memory")
    parser.add_argument("--only-soak", action="store_true", help="leave the comparison out")
    args = parser.parse_args()
    checkpoint = asset("tiny/aligned.pth")
    print(describe_machine(torch.device("cpu")))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        ports = free_port(), free_port()
        command = [sys.executable, "-m", "minigpt4.serve", "--ckpt", checkpoint, "--port", str(ports[0])]
        command += ["--options", f"serving.feature_memory={FEATURES}"]
        ours = stack.enter_context(running(Server("minigpt4", command, ports[0], "aligned")))
        if not args.only_soak:
            exported = Path(folder, "exported")
            export = ["-m", "minigpt4", "export", "--cfg-path", "eval_configs/quickstart.yaml", "--ckpt", checkpoint]
            subprocess.run([sys.executable, *export, "--out", str(exported), "--no-verify"], cwd=PROJECT, check=True)
            transformers = os.path.join(os.path.dirname(sys.executable), "transformers")
            command = [transformers, "serve", str(exported), "--port", str(ports[1]), "--host", "127.0.0.1"]
            command += ["--dtype", "float32"]  # by default that of the file, in which ours does not compute on a CPU
            theirs = stack.enter_context(running(Server("transformers serve", command, ports[1], str(exported))))
            compare(ours, theirs, args.clients)
        if args.soak:
            soak(ours, args.soak)


if __name__ == "__main__":
    main()

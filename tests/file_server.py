"""A web server of a folder, in a thread."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Server(ThreadingHTTPServer):
    """Serves a folder.

    Attributes:
        requests: "METHOD path" of each request.
        failures: number of requests that are to fail before one succeeds, by path.
        head_status: status of every HEAD request; None: as usual.
        cuts: number of answers to GET that end in the middle, by path.
        lengths: whether answers say how long they are.
    """

    def __init__(self, folder: Path) -> None:
        self.requests: list[str] = []
        self.failures: dict[str, int] = {}
        self.head_status: int | None = None
        self.cuts: dict[str, int] = {}
        self.lengths = True
        server = self

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *args: object) -> None:
                super().__init__(*args, directory=str(folder))  # type: ignore[arg-type]

            def send_head(self):  # type: ignore[no-untyped-def]
                server.requests.append(f"{self.command} {self.path}")
                if self.command == "HEAD" and server.head_status:
                    return self.send_error(server.head_status)
                if self.command == "GET" and server.failures.get(self.path, 0) > 0:
                    server.failures[self.path] -= 1
                    return self.send_error(503)
                return super().send_head()

            def send_header(self, keyword: str, value: str) -> None:
                if server.lengths or keyword != "Content-Length":
                    super().send_header(keyword, value)

            def copyfile(self, source: Any, outputfile: Any) -> None:
                if server.cuts.get(self.path, 0) > 0:
                    server.cuts[self.path] -= 1
                    content = source.read()
                    source = io.BytesIO(content[: len(content) // 2])
                super().copyfile(source, outputfile)

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *address: object) -> None:
        """A client may end a connection early; other errors are shown."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(*address)  # type: ignore[arg-type]

    def gets(self) -> list[str]:
        return [request.removeprefix("GET ") for request in self.requests if request.startswith("GET")]


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A server that runs until the end of the block."""
    with Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()

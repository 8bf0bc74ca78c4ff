"""The server that shows the chat page: where it listens, who is answered, and the password."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from urllib.parse import urlsplit

import gradio as gr
from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from minigpt4.common.cli import console
from minigpt4.common.errors import ConfigError
from minigpt4.common.files import PACKAGE

CSS = PACKAGE / "assets" / "web" / "page.css"
EXAMPLES = PACKAGE / "assets" / "examples"
LOCAL = "127.0.0.1"
"""Address that only this machine can reach."""
LOCAL_NAMES = (LOCAL, "localhost")
"""Names under which a browser on this machine opens the page."""
USER = "minigpt4"
"""Name to log in with."""
PASSWORD_VARIABLE = "MINIGPT4_PASSWORD"
"""Environment variable of the password: a command line is visible to every user of a machine."""
MIN_PASSWORD = 8
"""Shortest password in characters."""
WRONG_PASSWORD_SECONDS = 1.0
"""Time before a wrong password is refused."""
MAX_UPLOAD = "50mb"


def serve(
    page: gr.Blocks,
    port: int | None = None,
    *,
    host: str = LOCAL,
    password: str | None = None,
    share: bool = False,
    block: bool = True,
) -> str:
    """Serve the page; without a public link, requests under the names of other sites are refused.

    Args:
        page: the page of `build_page`.
        port: port to listen on; None: the first free one from 7860.
        host: name or address to listen on; 0.0.0.0: every address of this machine.
        password: asked for before anything is shown; None: no password is needed.
        share: also make a public link, forwarded by Gradio's servers.
        block: return only when the server has stopped.

    Returns:
        The page's address.

    Raises:
        ConfigError: The port is taken, or there is none of that number.
    """

    async def allowed(user: str, given: str) -> bool:
        right = user == USER and secrets.compare_digest(given.encode(), str(password).encode())
        if not right:
            await asyncio.sleep(WRONG_PASSWORD_SECONDS)
        return right

    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    # Gradio's own greys are too pale to read on white.
    theme.set(input_placeholder_color="*neutral_500", block_info_text_color="*neutral_600")
    try:
        _, url, _ = page.launch(
            server_name=f"[{host}]" if ":" in host else host,
            server_port=port,
            share=share,
            auth=allowed if password else None,  # type: ignore[arg-type]
            auth_message=f"The user is <b>{USER}</b>, the password that of {PASSWORD_VARIABLE} at the start.",
            theme=theme,
            css_paths=CSS,
            footer_links=["api"],
            max_file_size=MAX_UPLOAD,
            allowed_paths=[str(EXAMPLES)],
            app_kwargs={} if share else {"lifespan": _guard(host)},
            prevent_thread_lock=True,
            quiet=True,
            ssr_mode=False,
        )
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--port: {port or '7860 and the next hundred'} cannot be used; choose another") from error
    if block:
        console().print(f"The page is at {url} (Ctrl-C ends it)", markup=False, soft_wrap=True)
        page.block_thread()
    return url


def check_address(host: str, port: int | None) -> None:
    """Refuse an address that cannot be listened on, before minutes of loading a model.

    Args:
        host: name or address to listen on.
        port: port; None: any.

    Raises:
        ConfigError: The host is not of this machine, or the port is taken or does not exist.
    """
    if port == 0:
        raise ConfigError("--port: 0 is no port; leave it out for the first free one")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, OverflowError, UnicodeError) as error:
        if isinstance(error, socket.gaierror | UnicodeError) or getattr(error, "errno", None) == errno.EADDRNOTAVAIL:
            raise ConfigError(
                f"--host: {host} is no address of this machine; 0.0.0.0 stands for all of them"
            ) from error
        raise ConfigError(f"--port: {port} cannot be used; choose another") from error


def password_for(host: str) -> str | None:
    """The password in MINIGPT4_PASSWORD; None: it is not set, and only this machine can open the page.

    Args:
        host: name or address that is listened on.

    Raises:
        ConfigError: Other machines can open the page and there is no password, or it is too short.
    """
    password = os.environ.get(PASSWORD_VARIABLE) or None
    if password is None and not _is_local(host):
        raise ConfigError(
            f"--host {host} lets other machines open the page, which needs a password: set the environment variable "
            f"{PASSWORD_VARIABLE} (at least {MIN_PASSWORD} characters), and log in as {USER}"
        )
    if password is not None and len(password) < MIN_PASSWORD:
        raise ConfigError(f"{PASSWORD_VARIABLE} has {len(password)} characters, should have at least {MIN_PASSWORD}")
    return password


class KnownNamesOnly:
    """Refuses what a page of another site makes a browser send.

    Any site can point a name of its own at this machine (DNS rebinding), so the Host must be known; and the Origin,
    which browsers send with requests from a page, must be that of this page.

    Where other machines can open the page, this machine's names are known as well, and any address in numbers, which no
    site can claim as it can a name.

    Args:
        app: the server that gets the other requests.
        listening: name or address that is listened on.
    """

    def __init__(self, app: ASGIApp, listening: str) -> None:
        self.app = app
        self.addresses = not _is_local(listening)
        own = [listening]
        if self.addresses:
            own = [name for name in (socket.gethostname(), socket.getfqdn(), listening) if not _is_address(name)]
        self.names = list(dict.fromkeys(name.lower() for name in (*LOCAL_NAMES, *own)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            host = headers.get("host", "").lower()
            origin = headers.get("origin")
            foreign = origin is not None and origin.lower().partition("://")[2] != host
            if foreign or not self._knows(host):
                shown = (f"[{name}]" if ":" in name else name for name in self.names)
                pages = " or ".join(f"http://{name}:{scope['server'][1]}/" for name in shown)
                refusal = PlainTextResponse(f"open this page as {pages}\n", status_code=403)
                await refusal(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _knows(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self.names or (self.addresses and _is_address(name))


def _guard(listening: str) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """A lifespan that puts `KnownNamesOnly` around the server before its first request.

    There, because Gradio puts its own CORS layer around all middleware that it is given, and that layer allows any
    origin where the host is not local.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        assert app.middleware_stack is not None
        app.middleware_stack = KnownNamesOnly(app.middleware_stack, listening)
        yield

    return lifespan


def _is_local(host: str) -> bool:
    return host.lower() == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

"""The server that shows the chat page: where it listens, who is answered, and the password."""

from __future__ import annotations

import asyncio
import ctypes
import os
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

import gradio as gr
from fastapi import FastAPI

from minigpt4.common.cli import console
from minigpt4.common.errors import ConfigError
from minigpt4.common.files import PACKAGE
from minigpt4.common.listening import LOCAL, KnownNamesOnly, is_local

CSS = PACKAGE / "assets" / "web" / "page.css"
EXAMPLES = PACKAGE / "assets" / "examples"
USER = "minigpt4"
"""Name to log in with."""
PASSWORD_VARIABLE = "MINIGPT4_PASSWORD"
"""Environment variable of the password: a command line is visible to every user of a machine."""
MIN_PASSWORD = 8
"""Shortest password in characters."""
WRONG_PASSWORD_SECONDS = 1.0
"""Time before a wrong password is refused."""
MAX_UPLOAD = "50mb"
MAX_VISITORS = 500
"""Visitors whose conversations are remembered, the latest ones; Gradio holds about 0.1 MB for each, for an hour."""
M_ARENA_MAX = -8
"""The parameter of glibc's `mallopt` that limits the number of malloc arenas (malloc.h)."""
ARENAS = 2
"""Malloc arenas, at most."""


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

    _limit_arenas()

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
            state_session_capacity=MAX_VISITORS,
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


def _limit_arenas() -> None:
    """Limit glibc's malloc arenas, in each of which freed memory stays: by default there are several for each core."""
    with suppress(AttributeError, OSError, TypeError):  # another C library than glibc
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)


def password_for(host: str, share: bool = False) -> str | None:
    """The password in MINIGPT4_PASSWORD; None: it is not set, and only this machine can open the page.

    Args:
        host: name or address that is listened on.
        share: whether there is a public link, too.

    Raises:
        ConfigError: Other machines can open the page and there is no password, or it is too short.
    """
    password = os.environ.get(PASSWORD_VARIABLE) or None
    if password is None and (share or not is_local(host)):
        way = "--share" if share else f"--host {host}"
        raise ConfigError(
            f"{way} lets other machines open the page, which needs a password: set the environment variable "
            f"{PASSWORD_VARIABLE} (at least {MIN_PASSWORD} characters), and log in as {USER}"
        )
    if password is not None and len(password) < MIN_PASSWORD:
        raise ConfigError(f"{PASSWORD_VARIABLE} has {len(password)} characters, should have at least {MIN_PASSWORD}")
    return password


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

"""Where a server of this machine listens, and under which names it answers."""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from minigpt4.common.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Receive, Scope, Send

LOCAL = "127.0.0.1"
"""Address that only this machine can reach."""
LOCAL_NAMES = (LOCAL, "localhost")
"""Names under which a browser on this machine opens a page."""


def check_address(host: str, port: int | None) -> None:
    """Refuse an address that cannot be listened on, before minutes of loading a model.

    Args:
        host: name or address to listen on.
        port: port; None: any.

    Raises:
        ConfigError: The host is not of this machine, or the port is taken or does not exist.
    """
    if port == 0:
        raise ConfigError("--port: 0 is no port; leave it out, or name another")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address[0], port or 0, *address[2:]))  # getaddrinfo takes 65537 for 1
    except (OSError, OverflowError, UnicodeError) as error:
        if isinstance(error, socket.gaierror | UnicodeError) or getattr(error, "errno", None) == errno.EADDRNOTAVAIL:
            raise ConfigError(
                f"--host: {host} is no address of this machine; 0.0.0.0 stands for all of them"
            ) from error
        raise ConfigError(f"--port: {port} cannot be used; choose another") from error


def is_local(host: str) -> bool:
    """Whether only this machine can reach what listens on a name or address."""
    return host.lower() == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


class KnownNamesOnly:
    """Refuses what a page of another site makes a browser send.

    Any site can point a name of its own at this machine (DNS rebinding), so the Host must be known; and the Origin,
    which browsers send with requests from a page, must be that of this page.

    Where other machines can open the page, this machine's names are known as well, and any address in numbers, which no
    site can claim as it can a name.

    Args:
        app: the server that gets the other requests.
        listening: name or address that is listened on.
        refuse: makes the answer to what is refused, from the addresses that are known; None: a line for people.
    """

    def __init__(self, app: ASGIApp, listening: str, refuse: Callable[[str], ASGIApp] | None = None) -> None:
        self.app = app
        self.refuse = refuse or _open_page
        self.addresses = not is_local(listening)
        own = [listening]
        if self.addresses:
            own = [name for name in (socket.gethostname(), socket.getfqdn(), listening) if not _is_address(name)]
        self.names = list(dict.fromkeys(name.lower() for name in (*LOCAL_NAMES, *own)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        from starlette.datastructures import Headers

        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            host = headers.get("host", "").lower()
            origin = headers.get("origin")
            foreign = origin is not None and origin.lower().partition("://")[2] != host
            if foreign or not self._knows(host):
                shown = (f"[{name}]" if ":" in name else name for name in self.names)
                pages = " or ".join(f"http://{name}:{scope['server'][1]}/" for name in shown)
                await self.refuse(pages)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _knows(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self.names or (self.addresses and _is_address(name))


def _open_page(pages: str) -> ASGIApp:
    from starlette.responses import PlainTextResponse

    return PlainTextResponse(f"open this page as {pages}\n", status_code=403)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

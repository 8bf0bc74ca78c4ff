"""Images of a request: in it, as data URLs, or elsewhere, where that is allowed."""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import socket
from collections.abc import Sequence
from urllib.parse import unquote

import httpx

from minigpt4.common.errors import one_line
from minigpt4.serve.protocol import RequestError

SECONDS = 20.0
"""Time that fetching an image may take."""
MAX_REDIRECTS = 3
HEADERS = {"User-Agent": "minigpt4-rebuilt", "Accept-Encoding": "identity"}
"""With which images are asked for."""


class ImageSource:
    """Brings the file of an image that a URL names.

    Whoever may ask the server for any address could look into its network. So by default it asks for none; where that
    is allowed, only for public addresses, and for hosts that are named.

    Args:
        remote: hosts that images may be fetched from, at any address; none: any host at a public address; None: images
            are not fetched.
        max_bytes: largest file.
    """

    def __init__(self, remote: Sequence[str] | None, max_bytes: int) -> None:
        self.remote = None if remote is None else [host.lower() for host in remote]
        self.max_bytes = max_bytes

    async def file(self, url: str, place: str) -> bytes:
        """The content of an image file.

        Args:
            url: a data URL, or an address where that is allowed.
            place: where the request names it, for messages.

        Raises:
            RequestError: It is no such URL, is broken or too large, cannot be fetched, or must not be.
        """
        scheme = url[: url.find(":")].lower() if ":" in url[:10] else ""
        if scheme == "data":
            return _decode(url, place)
        if scheme not in ("http", "https"):
            raise RequestError(
                f"{place}: an image should be a data URL such as data:image/png;base64,..., or an address in http(s); "
                f"found {url[:20]!r}",
                param=place,
            )
        if self.remote is None:
            raise RequestError(
                f"{place}: this server does not fetch images; send the image itself as a data URL, or start the server "
                "with --allow-remote-images",
                param=place,
            )
        try:
            return await asyncio.wait_for(self._fetch(httpx.URL(url), place), SECONDS)
        except asyncio.TimeoutError as error:
            raise RequestError(f"{place}: the image did not come within {SECONDS:g} s", param=place) from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
            raise RequestError(f"{place}: the image cannot be fetched: {one_line(error)}", param=place) from error

    async def _fetch(self, url: httpx.URL, place: str) -> bytes:
        async with httpx.AsyncClient(trust_env=False, timeout=SECONDS, headers=HEADERS) as client:
            for _ in range(1 + MAX_REDIRECTS):
                address = await self._address(url, place)
                # The connection goes to the address that was looked at: a name may point elsewhere a moment later.
                request = client.build_request(
                    "GET",
                    url.copy_with(host=address),
                    headers={"Host": url.netloc.decode("ascii")},
                    extensions={"sni_hostname": url.host},
                )
                response = await client.send(request, stream=True)
                try:
                    if response.has_redirect_location:
                        url = url.join(response.headers["location"])
                        continue
                    response.raise_for_status()
                    return await self._content(response, place)
                finally:
                    await response.aclose()
        raise RequestError(f"{place}: more than {MAX_REDIRECTS} redirections", param=place)

    async def _address(self, url: httpx.URL, place: str) -> str:
        """The address of a URL's host, if it may be asked."""
        if url.scheme not in ("http", "https") or not url.host:
            raise RequestError(f"{place}: images are fetched by http(s) only", param=place)
        named = url.host.lower() in (self.remote or ())
        if self.remote and not named:
            raise RequestError(
                f"{place}: this server does not fetch images from {url.host}, only from those named by "
                "--allow-remote-images; send the image itself as a data URL",
                param=place,
            )
        port = url.port or (443 if url.scheme == "https" else 80)
        found = await asyncio.get_running_loop().getaddrinfo(url.host, port, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in found]
        if not named and not all(map(_is_public, addresses)):
            raise RequestError(
                f"{place}: {url.host} is not a public address; send the image itself as a data URL", param=place
            )
        return addresses[0]

    async def _content(self, response: httpx.Response, place: str) -> bytes:
        content = bytearray()
        async for chunk in response.aiter_raw():  # nothing is unpacked, since it might become too large
            content += chunk
            if len(content) > self.max_bytes:
                raise RequestError(
                    f"{place}: the image has more than {self.max_bytes / 1e6:g} MB (serving.max_request_mb)",
                    status=413,
                    param=place,
                    code="request_too_large",
                )
        return bytes(content)


def _is_public(address: str) -> bool:
    found = ipaddress.ip_address(address)
    return (getattr(found, "ipv4_mapped", None) or found).is_global


def _decode(url: str, place: str) -> bytes:
    head, comma, content = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise RequestError(
            f"{place}: a data URL should begin like data:image/png;base64, but found {head[:40]!r}", param=place
        )
    try:
        content = unquote(content) if "%" in content else content
        return base64.b64decode("".join(content.split()), validate=True)  # the command base64 breaks lines
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"{place}: broken base64: {one_line(error)}", param=place) from error

"""Shards elsewhere: each is copied into a folder when it is first needed, and read there like any other.

So the order of samples and a resume are as exact as with shards on a disk, also where a server cannot send a part of a
file. `http:` and `https:` are read by httpx, `pipe:COMMAND` is what a shell command writes, as in webdataset, and every
other protocol (`s3:`, `gs:`, `hf:`) is fsspec's.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import tarfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from minigpt4.common.errors import ConfigError, RemoteDataError, one_line
from minigpt4.common.files import lock, write_atomically

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger(__name__)
PIPE = "pipe:"
ATTEMPTS = 4
"""Requests for a shard before it counts as unreachable."""
FIRST_WAIT = 1.0
"""Seconds before the second request, doubled each time."""
TIMEOUT = 60.0
"""Seconds that a server may be silent."""
BLOCK = 1 << 20
"""Bytes written at a time."""
VERSION_KEYS = ("ETag", "etag", "blob_id", "LastModified", "last_modified", "updated", "mtime", "created")
"""What tells versions of a file apart, in the answers of fsspec's file systems."""
UNKNOWN_SIZE = 0
MARK = ".minigpt4_shard"
"""The file that is locked while a shard is copied; what has none beside it is no copy, and never deleted."""


@dataclass(frozen=True)
class RemoteShards:
    """The shards of a dataset that are elsewhere, and the folder that keeps copies of them.

    Attributes:
        folder: folder of the copies, which several datasets and processes may share.
        max_bytes: size of all copies together, above which those not opened for longest are deleted; None: no limit.
        urls: URL of each shard, by the path of its copy.
    """

    folder: Path
    max_bytes: float | None = None
    urls: dict[Path, str] = field(default_factory=dict)

    def add(self, url: str) -> Path:
        """The path of a shard's copy, whether it is there yet or not; its name is the shard's."""
        place = self.folder / hashlib.sha256(url.encode()).hexdigest()[:16]
        name = "" if url.startswith(PIPE) else Path(urlsplit(url).path).name
        path = place / (name or "shard.tar")
        self.urls[path] = url
        return path

    def only(self, path: Path) -> RemoteShards:
        """The same with one shard, which is quicker to send to another process."""
        return replace(self, urls={path: self.urls[path]})

    def stat(self, path: Path) -> tuple[int, int]:
        """Size in bytes (0: unknown) and a number for the version of a shard, asked from its server.

        Raises:
            RemoteDataError: It cannot be reached, or does not exist there.
            ConfigError: fsspec does not know the protocol, or lacks a package for it.
        """
        url = self.urls[path]
        if url.startswith(PIPE):
            return UNKNOWN_SIZE, _number(url)
        size, version = _http_stat(url) if _is_http(url) else _fsspec_stat(url)
        return size, _number(version)

    def fetch(self, path: Path, size: int, *, again: bool = False) -> None:
        """Copy a shard, unless its copy is there; one process does so at a time, the others wait for it.

        Args:
            path: path of the copy.
            size: its size in bytes; 0: unknown.
            again: the shard has changed: copy it even where there is a copy.

        Raises:
            RemoteDataError: It cannot be reached, does not exist there, ends early, or has another size by now.
            ConfigError: The copy cannot be written; another sample must not take the place of its samples.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with (path.parent / MARK).open("w") as file:
                while not lock(file.fileno()):
                    time.sleep(0.05)
                if not again and _has_size(path, size):
                    os.utime(path)  # opened last, deleted last
                    return
                logger.info("copying %s to %s", self.urls[path], path.parent)
                write_atomically(path, lambda temporary: self._download(path, temporary, size))
            self._make_room(path)
        except OSError as error:
            raise ConfigError(
                f"the copy of {self.urls[path]} cannot be written to {path.parent}: {error.strerror or error}; make "
                "room there, or set datasets.NAME.shard_cache or shard_cache_gb"
            ) from error

    def open(self, path: Path, size: int) -> int:
        """A descriptor for reading a shard's copy, fetched first where it is missing; errors as for `fetch`."""
        while True:
            self.fetch(path, size)
            try:
                return os.open(path, os.O_RDONLY)
            except FileNotFoundError:  # another process made room in the meantime
                continue

    def _download(self, path: Path, temporary: Path, size: int) -> None:
        url = self.urls[path]
        for attempt in range(1, ATTEMPTS + 1):
            try:
                if url.startswith(PIPE):
                    _run(url.removeprefix(PIPE), temporary)
                elif _is_http(url):
                    _http_get(url, temporary)
                else:
                    _fsspec_get(url, temporary)
                found = temporary.stat().st_size
                if size not in (UNKNOWN_SIZE, found):
                    raise RemoteDataError(f"shard {url} has {found:,} bytes, {size:,} are expected; start again")
                if size == UNKNOWN_SIZE and not _ends_as_tar(temporary):
                    raise _TransientError(f"it ends after {found:,} bytes without a tar's end")
                return
            except _TransientError as error:
                if attempt == ATTEMPTS:
                    raise RemoteDataError(f"shard {url} cannot be read ({error}), {ATTEMPTS} times in a row") from error
                time.sleep(FIRST_WAIT * 2 ** (attempt - 1))

    def _make_room(self, newest: Path) -> None:
        """Delete the least recently opened copies; a process that has one open can still read it."""
        if self.max_bytes is None:
            return
        copies: list[tuple[int, int, Path]] = []
        for mark in self.folder.glob(f"*/{MARK}"):
            for path in mark.parent.glob("[!.]*"):
                with suppress(FileNotFoundError):  # another process makes room, too
                    stat = path.stat()
                    copies.append((stat.st_mtime_ns, stat.st_size, path))
        total = sum(size for _, size, _ in copies)
        for _, size, path in sorted(copies):
            if total <= self.max_bytes:
                return
            if path != newest:
                path.unlink(missing_ok=True)
                total -= size


class _TransientError(Exception):
    """A request that may succeed when it is repeated."""


def _number(version: str) -> int:
    """A text as a number that fits into a time of change."""
    return int.from_bytes(hashlib.sha256(version.encode()).digest()[:7], "little")


def _has_size(path: Path, size: int) -> bool:
    try:
        return size in (UNKNOWN_SIZE, path.stat().st_size)
    except FileNotFoundError:
        return False


def _ends_as_tar(path: Path) -> bool:
    """Whether a file ends with a block of zeros, as a tar that is complete does."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - tarfile.BLOCKSIZE))
        return file.read() == bytes(tarfile.BLOCKSIZE)


def _is_http(url: str) -> bool:
    return urlsplit(url).scheme.lower() in ("http", "https")


def _run(command: str, temporary: Path) -> None:
    with temporary.open("wb") as file:
        done = subprocess.run(command, shell=True, stdout=file, stderr=subprocess.PIPE)
    if done.returncode:
        said = " ".join(done.stderr.decode(errors="replace").split())[-300:]
        raise _TransientError(f"status {done.returncode}: {said}" if said else f"status {done.returncode}")


@lru_cache(maxsize=1)
def _client(process: int) -> httpx.Client:
    """The client of this process; connections cannot be shared with a fork, and a client takes a while to make."""
    import httpx

    return httpx.Client(follow_redirects=True, timeout=TIMEOUT)


def _http_stat(url: str) -> tuple[int, str]:
    import httpx

    for attempt in range(1, ATTEMPTS + 1):
        try:
            client = _client(os.getpid())
            answer = client.head(url)
            if answer.status_code in (403, 405, 501):  # some servers, and signed URLs, allow GET only
                with client.stream("GET", url) as answer:
                    _check_status(answer)
            _check_status(answer)
        except (httpx.TransportError, _TransientError) as error:
            if attempt == ATTEMPTS:
                raise RemoteDataError(f"{url} cannot be reached ({one_line(error)})") from error
            time.sleep(FIRST_WAIT * 2 ** (attempt - 1))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise RemoteDataError(f"{url} cannot be reached ({one_line(error)})") from error
        else:
            break
    headers: Mapping[str, str] = answer.headers
    length = headers.get("content-length", "")
    is_encoded = headers.get("content-encoding", "identity") != "identity"
    size = int(length) if length.isdigit() and not is_encoded else UNKNOWN_SIZE
    return size, headers.get("etag") or headers.get("last-modified") or ""


def _http_get(url: str, temporary: Path) -> None:
    import httpx

    try:
        with _client(os.getpid()).stream("GET", url) as answer, temporary.open("wb") as file:
            _check_status(answer)
            for block in answer.iter_bytes(BLOCK):
                file.write(block)
    except httpx.TransportError as error:  # also a connection that ends early
        raise _TransientError(one_line(error)) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RemoteDataError(f"shard {url} cannot be read ({one_line(error)})") from error


def _check_status(answer: Any) -> None:
    if answer.status_code == 429 or answer.status_code >= 500:
        raise _TransientError(f"HTTP {answer.status_code}")
    if answer.status_code != 200:
        raise RemoteDataError(f"{answer.url} cannot be read (HTTP {answer.status_code})")


def _fsspec(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path there."""
    try:
        from fsspec.core import url_to_fs

        system, path = url_to_fs(url)
    except ImportError as error:
        raise ConfigError(f"{url}: a package is missing ({one_line(error)}); pip install it") from error
    except Exception as error:  # unknown protocols, missing credentials: each file system has errors of its own
        raise ConfigError(f"{url} cannot be opened ({one_line(error)})") from error
    return system, str(path)


def _fsspec_stat(url: str) -> tuple[int, str]:
    system, path = _fsspec(url)
    try:
        info = system.info(path)
    except Exception as error:  # as above
        raise RemoteDataError(f"{url} cannot be reached ({one_line(error)})") from error
    return int(info.get("size") or UNKNOWN_SIZE), next((str(info[key]) for key in VERSION_KEYS if info.get(key)), "")


def _fsspec_get(url: str, temporary: Path) -> None:
    system, path = _fsspec(url)
    try:
        system.get_file(path, str(temporary))
    except FileNotFoundError as error:
        raise RemoteDataError(f"shard {url} does not exist") from error
    except Exception as error:  # as above
        raise _TransientError(one_line(error)) from error

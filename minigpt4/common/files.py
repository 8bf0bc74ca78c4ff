"""Reading and writing files: atomic writes, JSON with errors that name the place, and the paths of shipped files."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from minigpt4.common.errors import ConfigError, DataError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step.

    A kill at any moment leaves either the old file or the whole new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, name: str) -> None:
    """Delete the temporary files that killed writers of `name` (which may hold wildcards) left in a folder."""
    for temporary in folder.glob(f".{name}.*"):
        temporary.unlink(missing_ok=True)


PACKAGE = Path(__file__).resolve().parent.parent
PROJECT = PACKAGE.parent
CONFIGS = PACKAGE / "configs"
IMAGE_SUFFIXES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Files of a folder that count as images."""


def project_file(relative: str) -> str:
    """A file of the checkout (`${project:prompts/alignment.txt}` in YAML)."""
    return str(PROJECT / relative)


def asset(relative: str) -> str:
    """A file shipped inside the package (`${asset:tiny/llama}` in YAML)."""
    return str(PACKAGE / "assets" / relative)


def existing(path: str | None, key: str, variable: str | None = None, folder: bool = False) -> Path:
    """`path`, checked.

    Args:
        path: The configured value.
        key: Its key in the configuration, for the message.
        variable: Environment variable that moves the root it lies under.
        folder: A folder is expected, not a file.

    Raises:
        ConfigError: It is not set or does not exist; the message names the key and the variable.
    """
    what = "folder" if folder else "file"
    if not path:
        raise ConfigError(f"{key} is not set; give the {what}'s path in your YAML or by --options {key}=PATH")
    found = Path(path)
    if found.is_dir() if folder else found.is_file():
        return found
    root = f", or set the environment variable {variable} to the folder that holds it" if variable else ""
    kind = f" ({'a file' if folder else 'a folder'} of that name exists)" if found.exists() else ""
    raise ConfigError(f"{key}: {what} {found} does not exist{kind}; set it by --options {key}=PATH{root}")


def whole_characters(text: str) -> str:
    """`text` with halves of surrogate pairs joined, and lone ones replaced: JSON can hold them, UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def read_json(path: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: the file is missing or unreadable, is not JSON, or has an object with the same key twice, of
            which Python's reader would silently keep the last.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_no_key_twice)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except _KeyTwiceError as error:
        raise DataError(f"{path}: the key {error} comes twice in one object") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: {error.msg} in line {error.lineno}, column {error.colno}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` whole or not at all; NaN and infinities, which JSON lacks, become null."""
    text = json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    # A lone surrogate, which a decoder may produce, cannot be encoded.
    write_atomically(Path(path), lambda temporary: temporary.write_bytes(text.encode("utf-8", errors="replace")))


class _KeyTwiceError(Exception):
    pass


def _no_key_twice(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _KeyTwiceError(repr(key))
        found[key] = value
    return found


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return content

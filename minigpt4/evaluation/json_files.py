"""JSON in and out: whole files, numbers that every reader knows, and errors that name the file and the place."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from minigpt4.common.errors import DataError
from minigpt4.common.files import write_atomically


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

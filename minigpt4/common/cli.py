"""What every command line shares: a user's mistake ends it with one line instead of a traceback."""

from __future__ import annotations

import os
import sys
from contextlib import ContextDecorator
from types import TracebackType

from minigpt4.common.errors import MiniGPT4Error

EXIT_CODE = 2
"""Exit status of a command that stopped because of a mistake the user can mend."""


def _prefix() -> str:
    """`[rank N] ` under a launcher of several processes, else nothing.

    Every rank speaks: an error on one rank alone would otherwise never be shown.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        return f"[rank {os.environ.get('RANK', '?')}] "
    return ""


class exit_on_error(ContextDecorator):  # noqa: N801 - used like a function
    """Turn a `MiniGPT4Error` into one `error: ...` message on stderr and exit status 2.

    Works as a decorator (`@exit_on_error()` on `main`) and as a context manager. Any other
    exception is a bug and keeps its traceback.
    """

    def __enter__(self) -> exit_on_error:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, MiniGPT4Error):
            sys.stderr.write(f"{_prefix()}error: {error}\n")
            sys.stderr.flush()
            raise SystemExit(EXIT_CODE) from None

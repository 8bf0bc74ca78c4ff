"""When a request is tried again, and how many may go out in a minute."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from random import Random
from threading import Lock


def retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds that a `Retry-After` header asks for, a number or a date (RFC 9110, 10.2.3); None: it says nothing."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=timezone.utc)
    return max(0.0, (when - (now or datetime.now(timezone.utc))).total_seconds())


def delay(attempt: int, asked: float | None, base: float, longest: float, generator: Random) -> float:
    """Seconds before the next attempt.

    Args:
        attempt: Attempts made so far, from 1.
        asked: What the server asked for, if anything; waited for in full, up to `longest`.
        base: Before the second attempt; doubled each time.
        longest: At most.
        generator: Of the jitter, a factor from 0.5 to 1, so that those who failed together do not come back together.
    """
    backoff = min(longest, base * 2.0 ** (attempt - 1)) * generator.uniform(0.5, 1.0)
    return min(longest, max(backoff, asked or 0.0))


class RateLimit:
    """Lets so many requests go in a minute, evenly spaced; shared by threads.

    Args:
        per_minute: Requests; None: as many as come.
        clock: Seconds that only go forward.
        sleep: Waits.
    """

    def __init__(
        self,
        per_minute: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.spacing = 60.0 / per_minute if per_minute else 0.0
        self.clock = clock
        self.sleep = sleep
        self._next = 0.0
        self._lock = Lock()

    def wait(self) -> None:
        """Come back when the next request may go."""
        with self._lock:
            now = self.clock()
            start = max(now, self._next)
            self._next = start + self.spacing
        if start > now:
            self.sleep(start - now)

"""Ending a run in good order when it is told to stop."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

from minigpt4.common.dist import Processes

CHECK_EVERY = 5
"""Optimizer steps between two questions to the other processes whether one was told to stop."""


class StopSignal:
    """Remembers SIGTERM and SIGINT, so that the step under way is finished and saved.

    A second SIGINT ends the process at once. The handler only sets a flag: nothing in it may wait for another
    process, which may have been stopped elsewhere.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.received = number

    def agreed(self, step: int, processes: Processes) -> bool:
        """Whether to stop after `step` steps, the same answer in every process."""
        if processes.world_size > 1 and step % CHECK_EVERY:
            return False
        return processes.any(self.received is not None)

    @property
    def exit_code(self) -> int:
        """As a shell reports a process ended by the signal, so that a script does not go on as if all were done."""
        return 128 + (self.received or signal.SIGTERM)

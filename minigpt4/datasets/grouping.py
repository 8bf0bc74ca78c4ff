"""Steps of samples of like length, for language models whose batches have to be padded."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from minigpt4.datasets.sampler import Key, SampleOrder


class GroupedOrder:
    """The samples of a `SampleOrder`, sorted by length within stretches of several steps.

    The steps of a stretch keep their samples together and come in a drawn order, so that lengths do not rise and fall
    with the steps. Like the order it changes, this is a pure function of the seed and the position: it is the same
    whatever the processes, and after a resume.

    Args:
        order: The stream.
        step_size: Samples an optimizer step, of all processes.
        steps: Optimizer steps of a stretch.
        length_of: Estimates a sample's length, in any unit.
    """

    def __init__(self, order: SampleOrder, step_size: int, steps: int, length_of: Callable[[Key], int]) -> None:
        self.order = order
        self.step_size = step_size
        self.steps = steps
        self.length_of = length_of
        self._stretch: tuple[int, list[list[Key]]] | None = None

    def keys(self, start: int, stop: int) -> list[Key]:
        """The samples at [start, stop), which must be a part of one step."""
        step, first = divmod(start, self.step_size)
        last = first + stop - start
        assert first <= last <= self.step_size, "asked for samples of several steps"
        number, within = divmod(step, self.steps)
        if self._stretch is None or self._stretch[0] != number:
            self._stretch = number, self._grouped(number)
        return self._stretch[1][within][first:last]

    def _grouped(self, number: int) -> list[list[Key]]:
        """The steps of a stretch."""
        length = self.steps * self.step_size
        keys = self.order.keys(number * length, (number + 1) * length)
        keys.sort(key=self.length_of)
        steps = [keys[start : start + self.step_size] for start in range(0, length, self.step_size)]
        Random(f"{self.order.seed}-lengths-{number}").shuffle(steps)
        return steps

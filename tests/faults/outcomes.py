"""What became of the faults, and the table of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from rich.table import Table


class Outcome(Enum):
    """How a fault ended."""

    survived = "survived"  # the results are those of an undisturbed run, or one line names the fault
    lost = "lost"  # finished work is gone, or cannot be continued
    wrong = "wrong"  # other results, a traceback, or nonsense that was accepted


@dataclass
class Tally:
    """The outcomes of one kind of fault.

    Attributes:
        fault: what was done, to what.
        outcomes: how often each outcome was seen.
        problems: what went wrong, a text each, with what is needed to see it again.
    """

    fault: str
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def add(self, outcome: Outcome, problem: str = "") -> None:
        """Count a fault; `problem` says what went wrong."""
        self.outcomes[outcome] += 1
        if outcome is not Outcome.survived:
            self.problems.append(f"{self.fault}: {outcome.value}: {problem}")

    def __str__(self) -> str:
        counts = ", ".join(f"{number} {outcome.value}" for outcome, number in self.outcomes.items())
        return "\n    ".join([f"{self.fault}: {counts or 'not injected'}", *self.problems])


def table(tallies: Iterable[Tally]) -> Table:
    """The outcomes of each kind of fault, and of all."""
    shown = Table("fault", "injected", *(outcome.value for outcome in Outcome), title="Faults", title_justify="left")
    total: Counter[Outcome] = Counter()
    for tally in tallies:
        shown.add_row(tally.fault, *_numbers(tally.outcomes))
        total += tally.outcomes
    shown.add_section()
    shown.add_row("all", *_numbers(total))
    for column in shown.columns[1:]:
        column.justify = "right"
    return shown


def _numbers(outcomes: Counter[Outcome]) -> list[str]:
    return [f"{outcomes.total():,}", *(f"{outcomes[outcome]:,}" for outcome in Outcome)]

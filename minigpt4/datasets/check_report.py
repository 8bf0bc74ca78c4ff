"""What a check of a dataset found, and how it is shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.console import Console

from minigpt4.common.types import Record
from minigpt4.datasets.readers.rows import RowProblem


@dataclass(slots=True)
class Report:
    """What a check found.

    Attributes:
        unit: What a usable record is called ("well-formed rows").
        splits: Usable records by split.
        words: Answers by their number of words.
        example: The first usable record.
        problems: Rows, pictures and files that cannot be used.
        warnings: What is usable and still looks wrong.
    """

    unit: str = "well-formed rows"
    splits: Counter[str | None] = field(default_factory=Counter)
    words: Counter[int] = field(default_factory=Counter)
    example: Record | None = None
    problems: list[RowProblem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether there is something to use, and nothing bad."""
        return not self.problems and self.splits.total() > 0

    def add(self, record: Record) -> None:
        """Count a usable record."""
        self.splits[record.split] += 1
        self.see(record)

    def see(self, record: Record) -> None:
        """Take the texts of a record into account that was counted already."""
        self.words.update(len(answer.split()) for answer in record.answers)
        self.example = self.example or record


def show(console: Console, name: str, report: Report, limit: int | None) -> None:
    """Print a report: counts, lengths, an example, warnings and the first `limit` problems (None: all)."""
    splits = ", ".join(f"{split} {count:,}" for split, count in report.splits.items()) or "none"
    console.print(f"{name}: {report.splits.total():,} {report.unit} ({splits})")
    if report.example is not None:
        shortest, longest = min(report.words), max(report.words)
        middle = _median(report.words)
        console.print(
            f"  answers: {report.words.total():,}, {shortest} to {longest} words long, {middle:g} in the middle"
        )
        _show_example(console, report.example)
    for warning in report.warnings:
        console.print(f"  warning: {warning}")
    if not report.problems:
        console.print("  bad rows: none")
        return
    console.print(f"  bad rows: {len(report.problems):,}")
    for problem in report.problems[:limit]:
        console.print(f"    {problem}")
    hidden = len(report.problems[limit:]) if limit is not None else 0
    if hidden:
        console.print(f"    ... and {hidden:,} more; --all shows them")


def _median(counts: Counter[int]) -> float:
    total = counts.total()
    return (_nth(counts, (total - 1) // 2) + _nth(counts, total // 2)) / 2


def _nth(counts: Counter[int], place: int) -> int:
    """The number at `place` of the numbers counted, in their order."""
    ordered: Iterator[int] = iter(sorted(counts))
    number = next(ordered)
    while place >= counts[number]:
        place -= counts[number]
        number = next(ordered)
    return number


def _show_example(console: Console, record: Record) -> None:
    question = f" | question: {record.question}" if record.question else ""
    console.print(f"  example: {record.image}{question} | answers: {' / '.join(record.answers)}")

"""What was done to each sample: one JSON object a line, only ever appended to, and where that leaves the sample."""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from minigpt4.common.errors import DataError

Event = dict[str, Any]
"""{"sample": id, "step": draw, describe, refine, filter or review, ...}"""


def read_events(path: Path) -> list[Event]:
    """Every whole line; one that a kill cut off at the end of the file is left out.

    Raises:
        DataError: The file cannot be read, or a line before the last is no event.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"ledger {path} cannot be read: {error.strerror}") from error
    # What follows the last line break is nothing, or was being written when the process died.
    return [_event(line, f"{path}, line {number}") for number, line in enumerate(lines[:-1], 1)]


def _event(line: bytes, source: str) -> Event:
    try:
        event = json.loads(line)
    except ValueError as error:
        raise DataError(f"ledger {source}: broken JSON; restore the file, or delete this line") from error
    if (
        not isinstance(event, dict)
        or not isinstance(event.get("sample"), str)
        or not isinstance(event.get("step"), str)
    ):
        raise DataError(f"ledger {source}: an object with the texts 'sample' and 'step' is expected")
    return event


class Ledger:
    """The ledger, open for appending by this process alone.

    Args:
        path: The file; made where it is missing, with its folder.

    Raises:
        DataError: Another process writes to it, or it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = path.open("a+b")
        except OSError as error:
            raise DataError(f"ledger {path} cannot be opened: {error.strerror}; set curation.dir") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise DataError(f"ledger {path} is in use by another curation command; wait for it, or end it") from error
        self._cut_torn_line()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Write events, and wait until they are on the disk."""
        text = "".join(json.dumps(dict(event), ensure_ascii=False) + "\n" for event in events)
        self._file.write(text.encode("utf-8", errors="replace"))
        self._file.flush()
        os.fsync(self._file.fileno())

    def events(self) -> list[Event]:
        """All events so far; errors as for `read_events`."""
        return read_events(self.path)

    def _cut_torn_line(self) -> None:
        """Remove what a kill left of a line, so that the next one does not go on from there."""
        content = self.path.read_bytes()
        if content and not content.endswith(b"\n"):
            self._file.truncate(content.rfind(b"\n") + 1)


ACCEPTED, REJECTED, PENDING = "accepted", "rejected", "pending"
DECISIONS = ("accept", "edit", "reject")


@dataclass(slots=True)
class Case:
    """One picture on its way to stage 2's data.

    Attributes:
        sample: Its id, under which picture and caption are exported.
        drawn: What `draw` wrote down: dataset, index and name.
        texts: Descriptions, the main one first; empty: none yet.
        text: The correction; after a person's edit, that.
        agreement: Support by the other descriptions, where the refiner says one.
        verdict: What the rules said of `text`: {"rule", "reason", "rules"}; None: not asked yet.
        decision: One of `DECISIONS`; None: none yet.
        error: Why the last attempt at the next step failed.
        usage: Tokens that the refiner took, failed attempts included.
    """

    sample: str
    drawn: Event
    texts: list[str] = field(default_factory=list)
    text: str | None = None
    agreement: float | None = None
    verdict: Event | None = None
    decision: str | None = None
    error: str | None = None
    usage: Counter[str] = field(default_factory=Counter)

    @property
    def status(self) -> str:
        """`ACCEPTED`, `REJECTED` or `PENDING`."""
        if self.decision is not None:
            return REJECTED if self.decision == "reject" else ACCEPTED
        return REJECTED if self.verdict is not None and self.verdict["rule"] is not None else PENDING

    @property
    def waits_for(self) -> str:
        """The step that a pending sample is to go through next."""
        if not self.texts:
            return "describe"
        if self.text is None:
            return "refine"
        return "filter" if self.verdict is None else "review"

    def take(self, event: Event) -> None:
        """Go on by one event."""
        self.usage.update(event.get("usage") or {})
        self.error = event.get("error")
        if self.error is not None:
            return
        step = event["step"]
        if step == "describe":
            self.texts, self.text, self.verdict = list(event["texts"]), None, None
        elif step == "refine":
            self.text, self.agreement, self.verdict = event["text"], event.get("agreement"), None
        elif step == "filter":
            self.verdict = event
        elif step == "review":
            self.decision = event["decision"]
            self.text = event.get("text", self.text)


def cases_of(events: Iterable[Event]) -> dict[str, Case]:
    """Every sample by its id, in the order drawn.

    Raises:
        DataError: An event of an unknown step, of a sample that was not drawn, or one that lacks something.
    """
    cases: dict[str, Case] = {}
    for number, event in enumerate(events, 1):
        sample, step = event["sample"], event["step"]
        if step == "draw":
            cases.setdefault(sample, Case(sample, event))
            continue
        if step not in ("describe", "refine", "filter", "review"):
            raise DataError(f"ledger, line {number}: unknown step '{step}'")
        if sample not in cases:
            raise DataError(f"ledger, line {number}: sample '{sample}' was never drawn")
        try:
            cases[sample].take(event)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"ledger, line {number}: step '{step}' of sample '{sample}' lacks {error}") from error
    return cases


@dataclass(frozen=True, slots=True)
class Tally:
    """How many samples stand where.

    Attributes:
        drawn: All.
        accepted: By a person, or by everybody's consent (`review --accept-all`).
        rejected: By whom or what -> number.
        pending: Step waited for -> number.
        failed: Pending ones whose last attempt failed.
    """

    drawn: int
    accepted: int
    rejected: Counter[str]
    pending: Counter[str]
    failed: int

    @classmethod
    def of(cls, cases: dict[str, Case]) -> Tally:
        """Count, and make sure that nothing was lost."""
        groups: dict[str, list[Case]] = {ACCEPTED: [], REJECTED: [], PENDING: []}
        for case in cases.values():
            groups[case.status].append(case)
        tally = cls(
            drawn=len(cases),
            accepted=len(groups[ACCEPTED]),
            rejected=Counter(_rejected_by(case) for case in groups[REJECTED]),
            pending=Counter(case.waits_for for case in groups[PENDING]),
            failed=sum(case.error is not None for case in groups[PENDING]),
        )
        total = tally.accepted + tally.rejected.total() + tally.pending.total()
        assert tally.drawn == total, f"{tally.drawn} samples drawn, {total} accounted for"
        return tally

    def __str__(self) -> str:
        rejected, pending = self.rejected.total(), self.pending.total()
        text = f"{self.drawn:,} drawn = {self.accepted:,} accepted + {rejected:,} rejected + {pending:,} pending"
        parts = [f"{number:,} rejected by {by}" for by, number in self.rejected.most_common()]
        parts += [f"{number:,} wait for {step}" for step, number in self.pending.items()]
        if self.failed:
            parts.append(f"{self.failed:,} of these after a failure: run the step again")
        return text + (f" ({'; '.join(parts)})" if parts else "")


def _rejected_by(case: Case) -> str:
    if case.decision is not None:
        return "review"
    assert case.verdict is not None
    return f"rule {case.verdict['rule']}"


def price(usage: Counter[str], price_in: float | None, price_out: float | None) -> dict[str, Any]:
    """Tokens and, where prices of a million tokens are given, the bill."""
    bill: dict[str, Any] = {"prompt_tokens": usage["prompt_tokens"], "completion_tokens": usage["completion_tokens"]}
    if price_in is not None or price_out is not None:
        cost = usage["prompt_tokens"] * (price_in or 0) + usage["completion_tokens"] * (price_out or 0)
        bill["cost"] = round(cost / 1e6, 6)
    return bill

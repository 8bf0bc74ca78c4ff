"""A person's decisions."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from threading import Lock

from minigpt4.curate.case import DECISIONS, PENDING, Case, Tally, cases_of
from minigpt4.curate.ledger import Ledger


class Review:
    """The samples that wait for a decision, and the decisions; shared by the page's threads.

    Args:
        ledger: Every decision is on the disk before the page goes on.
        pictures: Folder of {sample}.jpg.
    """

    def __init__(self, ledger: Ledger, pictures: Path) -> None:
        self.ledger = ledger
        self.pictures = pictures
        self.token = secrets.token_urlsafe(16)
        self._lock = Lock()
        self._cases = cases_of(ledger.events())

    def next_case(self) -> Case | None:
        """The first sample that waits for a decision."""
        return next(waiting(self._cases), None)

    def case(self, sample: str) -> Case | None:
        """A sample that has come as far as the review, decided or not."""
        case = self._cases.get(sample)
        return case if case is not None and (case.decision is not None or case in waiting(self._cases)) else None

    def tally(self) -> Tally:
        """Where all samples stand."""
        return Tally.of(self._cases)

    def decide(self, sample: str, decision: str, text: str) -> str | None:
        """Take a decision, a new one on a sample decided before as well.

        Returns:
            Why it cannot be taken; None: it is on the disk.
        """
        text = " ".join(text.split())
        with self._lock:
            case = self.case(sample)
            if case is None:
                return f"sample {sample!r} does not wait for a decision"
            if decision not in DECISIONS:
                return f"unknown decision {decision!r}; known: {', '.join(DECISIONS)}"
            if decision == "accept" and text and text != " ".join((case.text or "").split()):
                decision = "edit"  # what was typed must not be lost by the other button
            if decision == "edit" and not text:
                return "an edited text should not be empty; reject the sample instead"
            event = {"sample": sample, "step": "review", "decision": decision, "by": "person"}
            event |= {"text": text} if decision == "edit" else {}
            self.ledger.append([event])
            case.take(event)
        return None


def waiting(cases: dict[str, Case]) -> Iterator[Case]:
    """Samples that a decision is missing for."""
    return (case for case in cases.values() if case.status == PENDING and case.waits_for == "review")


def accept_rest(ledger: Ledger) -> int:
    """Accept everything that the rules kept and nobody decided on; how many these were."""
    cases = list(waiting(cases_of(ledger.events())))
    ledger.append({"sample": case.sample, "step": "review", "decision": "accept", "by": "all"} for case in cases)
    return len(cases)

"""A reviewer's decisions, and the samples they are about."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from minigpt4.common.errors import DataError
from minigpt4.curate.ledger import DECISIONS, Ledger, SampleState, Tally

WAITING = "waiting"
ACCEPTED = "accepted"
REJECTED = "rejected by review"
"""Verdicts; others are `rejected by rule NAME`."""
EVERYTHING = "everything"
"""What can be shown instead of the samples of one verdict."""
STRIP = 13
"""Small images of neighbouring samples on a page."""


def accept_rest(ledger: Ledger) -> int:
    """Accept everything that the rules kept and that has no decision; returns the number of samples."""
    waiting = [state.sample for state in ledger.states().values() if state.next_step == "review"]
    ledger.append({"sample": sample, "step": "review", "decision": "accept", "by": "all"} for sample in waiting)
    return len(waiting)


class Review:
    """The samples to review and the decisions on them; shared by the page's threads.

    Args:
        ledger: events so far, and where each decision is appended before the page moves on.
        images: folder of {sample}.jpg.
        arguments: arguments of the next step's command, which the last page names.

    Attributes:
        token: what a form must bring, so that no other site can send one.
        version: part of the images' addresses, by which browsers keep them only while this review runs.
    """

    def __init__(self, ledger: Ledger, images: Path, arguments: Sequence[str] = ()) -> None:
        self.ledger = ledger
        self.images = images
        self.arguments = arguments
        self.token = secrets.token_urlsafe(16)
        self.version = secrets.token_hex(4)
        self._lock = Lock()
        self._states = ledger.states()

    def shown(self, show: str) -> list[SampleState]:
        """The samples of a verdict (see `verdict`), or those that have come as far as the review, in the order drawn.

        Args:
            show: a verdict, or `EVERYTHING`.
        """
        return [s for s in self._states.values() if _reviewable(s) and show in (verdict(s), EVERYTHING)]

    def verdicts(self) -> Counter[str]:
        """Verdict -> samples, those that wait first."""
        counts = Counter(verdict(state) for state in self.shown(EVERYTHING))
        return Counter({WAITING: counts[WAITING], **counts})

    def next_sample(self, show: str = WAITING, before: str | None = None) -> SampleState | None:
        """The next sample to look at; None: there is none.

        Args:
            show: as for `shown`.
            before: id of the sample that was looked at before; behind the last sample comes the first again.
        """
        shown = self.shown(show)
        if before not in self._states:
            return next(iter(shown), None)
        places = {sample: place for place, sample in enumerate(self._states)}
        behind = (state for state in shown if places[state.sample] > places[before])
        return next(behind, next(iter(shown), None))

    def neighbours(self, state: SampleState, show: str) -> list[SampleState]:
        """The sample between those shown around it, `STRIP` at most.

        Args:
            state: the sample, also one of another verdict.
            show: as for `shown`.
        """
        around = [s for s in self.shown(EVERYTHING) if s is state or show in (verdict(s), EVERYTHING)]
        start = max(0, min(around.index(state) - STRIP // 2, len(around) - STRIP))
        return around[start : start + STRIP]

    def sample(self, sample: str) -> SampleState | None:
        """A sample that has come as far as the review, decided or not."""
        state = self._states.get(sample)
        return state if state is not None and _reviewable(state) else None

    def tally(self) -> Tally:
        """The number of samples in each state."""
        return Tally.of(self._states)

    def decide(self, sample: str, decision: str, text: str) -> str | None:
        """Record a decision, which replaces an earlier one.

        Args:
            sample: id of the sample.
            decision: one of `DECISIONS`.
            text: content of the page's text field.

        Returns:
            Why it is refused; None: it is on the disk.
        """
        text = " ".join(text.split())
        with self._lock:
            state = self.sample(sample)
            if state is None:
                return f"sample {sample!r} does not wait for a decision"
            if decision not in DECISIONS:
                return f"unknown decision {decision!r}; known: {', '.join(DECISIONS)}"
            if decision == "accept" and not (text or state.text):
                return "there is no text to accept; write one, or reject the sample"
            if decision == "accept" and text and text != " ".join((state.text or "").split()):
                decision = "edit"  # the accept button must not lose what was typed
            if decision == "edit" and not text:
                return "an edited text should not be empty; reject the sample instead"
            event = {"sample": sample, "step": "review", "decision": decision, "by": "person"}
            event |= {"text": text} if decision == "edit" else {}
            try:
                self.ledger.append([event])
            except DataError as error:
                return f"the decision is not saved: {error}"
            state.apply(event)
        return None


def verdict(state: SampleState) -> str:
    """What became of a sample: waiting, accepted, rejected by review, or rejected by rule and its name."""
    if state.accepted:
        return ACCEPTED
    return f"rejected by {state.rejected_by}" if state.rejected_by else WAITING


def _reviewable(state: SampleState) -> bool:
    """Whether a person can decide: what a rule rejected, too, may be accepted all the same."""
    return state.next_step == "review" or state.accepted or state.rejected_by is not None

"""The ledger: one JSON object a line for everything done to a sample, only ever appended to; and the state that these
events leave each sample in."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from minigpt4.common.errors import DataError
from minigpt4.common.files import lock, read_appended

Event = dict[str, Any]
"""{"sample": id, "step": draw, describe, refine, filter or review, ...}, with "error" where the step failed."""
DECISIONS = ("accept", "edit", "reject")


@dataclass(slots=True)
class SampleState:
    """One image on its way to stage 2's data.

    Attributes:
        sample: id of the sample, under which its image and caption are exported.
        drawn: event of the draw: dataset, index and name.
        texts: descriptions, the main one first; empty: none yet.
        text: correction, or the text that a reviewer edited; None: none yet.
        agreement: support by the image's other descriptions, 0 to 1; None where the refiner does not measure it.
        rules: digest of the rules that judged `text`; None: not judged yet.
        broken_rule: name of the rule that `text` breaks; None: it breaks none.
        reason: why that rule is broken, for people; None: it breaks none.
        decision: a reviewer's, one of `DECISIONS`; None: none yet.
        error: why the last attempt at the next step failed; None: it did not.
    """

    sample: str
    drawn: Event
    texts: list[str] = field(default_factory=list)
    text: str | None = None
    agreement: float | None = None
    rules: str | None = None
    broken_rule: str | None = None
    reason: str | None = None
    decision: str | None = None
    error: str | None = None

    @property
    def accepted(self) -> bool:
        """Whether a reviewer accepted it, edited or not."""
        return self.decision in ("accept", "edit")

    @property
    def rejected_by(self) -> str | None:
        """What rejected it: "review", or "rule" and the name of the rule; None: it is not rejected."""
        if self.decision is not None:
            return "review" if self.decision == "reject" else None
        return None if self.broken_rule is None else f"rule {self.broken_rule}"

    @property
    def next_step(self) -> str | None:
        """The step that a pending sample needs next; None: it is accepted or rejected."""
        if self.accepted or self.rejected_by is not None:
            return None
        if not self.texts:
            return "describe"
        if self.text is None:
            return "refine"
        return "filter" if self.rules is None else "review"

    def apply(self, event: Event) -> None:
        """Change the state as an event says.

        Raises:
            KeyError: The event lacks something.
            ValueError: Its step is unknown.
        """
        self.error = event.get("error")
        if self.error is not None:
            return
        step = event["step"]
        if step == "describe":
            self.texts, self.text = list(event["texts"]), None
            self.rules = self.broken_rule = None
        elif step == "refine":
            self.text, self.agreement = event["text"], event.get("agreement")
            self.rules = self.broken_rule = None
        elif step == "filter":
            self.rules, self.broken_rule, self.reason = event["rules"], event["rule"], event.get("reason")
        elif step == "review":
            self.decision = event["decision"]
            self.text = event.get("text", self.text)
        elif step != "draw":
            raise ValueError(f"unknown step '{step}'")


def sample_states(events: Iterable[Event]) -> dict[str, SampleState]:
    """The state of every sample, by id, in the order drawn.

    Raises:
        DataError: An event of an unknown step or of a sample that was not drawn, or an event that lacks something.
    """
    states: dict[str, SampleState] = {}
    for number, event in enumerate(events, 1):
        sample, step = event["sample"], event["step"]
        if step == "draw":
            states.setdefault(sample, SampleState(sample, event))
        if sample not in states:
            raise DataError(f"ledger, line {number}: sample '{sample}' was never drawn")
        try:
            states[sample].apply(event)
        except (KeyError, TypeError) as error:
            raise DataError(f"ledger, line {number}: step '{step}' of sample '{sample}' lacks {error}") from error
        except ValueError as error:
            raise DataError(f"ledger, line {number}: {error}") from error
    return states


@dataclass(frozen=True, slots=True)
class Tally:
    """How many samples are in which state: drawn = accepted + rejected + pending.

    Attributes:
        drawn: all samples.
        accepted: samples accepted in the review, one by one or by `--accept-all`.
        rejected: "review", or "rule" and its name -> samples rejected by it.
        pending: next step -> samples that need it.
        failed: pending samples whose last attempt failed.
    """

    drawn: int
    accepted: int
    rejected: Counter[str]
    pending: Counter[str]
    failed: int

    @classmethod
    def of(cls, states: Mapping[str, SampleState]) -> Tally:
        """Count the samples."""
        return cls(
            drawn=len(states),
            accepted=sum(state.accepted for state in states.values()),
            rejected=Counter(state.rejected_by for state in states.values() if state.rejected_by is not None),
            pending=Counter(state.next_step for state in states.values() if state.next_step is not None),
            failed=sum(state.next_step is not None and state.error is not None for state in states.values()),
        )

    def __str__(self) -> str:
        rejected, pending = self.rejected.total(), self.pending.total()
        text = f"{self.drawn:,} drawn = {self.accepted:,} accepted + {rejected:,} rejected + {pending:,} pending"
        parts = [f"{number:,} rejected by {by}" for by, number in self.rejected.most_common()]
        parts += [f"{number:,} wait for {step}" for step, number in self.pending.items()]
        if self.failed:
            parts.append(f"{self.failed:,} of these after a failure: run the step again")
        return text + (f" ({'; '.join(parts)})" if parts else "")


def read_events(path: Path) -> list[Event]:
    """Every complete line of a ledger; none where the file does not exist.

    Raises:
        DataError: The file cannot be read, or a line is not an event.
    """
    events: list[Event] = []
    for number, event in read_appended(path):
        if not isinstance(event, dict) or not all(isinstance(event.get(key), str) for key in ("sample", "step")):
            raise DataError(f"{path}, line {number}: should be an object with the texts 'sample' and 'step'")
        events.append(event)
    return events


class Ledger:
    """A ledger that this process alone appends to.

    Args:
        path: path of the file, which is created with its folder where it is missing.

    Raises:
        DataError: Another process has it open, or it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: FileIO = path.open("a+b", buffering=0)
        except OSError as error:
            raise DataError(f"ledger {path} cannot be opened: {error.strerror}; set curation.dir") from error
        if not lock(self._file.fileno()):
            self._file.close()
            raise DataError(f"ledger {path} is in use by another curation command; wait for it, or end it")
        # Remove the part of a line that a kill left, so that the next event begins a line.
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            self._file.truncate(content.rfind(b"\n") + 1)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Write events, and wait until they are on the disk.

        Raises:
            DataError: They cannot be written; none of them is then in the ledger.
        """
        text = "".join(json.dumps(dict(event), ensure_ascii=False) + "\n" for event in events)
        rest = memoryview(text.encode("utf-8", errors="replace"))
        size = os.fstat(self._file.fileno()).st_size
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(size)  # half a line would spoil the next one
            raise DataError(f"ledger {self.path} cannot be written: {error.strerror or error}") from error

    def states(self) -> dict[str, SampleState]:
        """The state of every sample; errors as for `read_events` and `sample_states`."""
        return sample_states(read_events(self.path))

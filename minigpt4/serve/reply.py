"""A question to the engine, and the answer to it while it grows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from random import Random
from typing import TYPE_CHECKING

from minigpt4.models.continuous_batching import Request
from minigpt4.models.generation import Answer
from minigpt4.serve.image_features import SentImage

if TYPE_CHECKING:
    from minigpt4.api import LoadedModel
    from minigpt4.common.schema import GenerationConfig

NOTHING = Answer("", ())
"""The answer before its first token."""
STOP, LENGTH, CANCELLED = "stop", "length", "cancelled"
"""Why an answer ended: by its end or a stop string, by its longest length, or because nobody wants it any more."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Question:
    """What the engine is asked.

    Attributes:
        model: the model that answers, one of the engine's.
        ids: token ids of the prompt, with IMAGE_POSITION at each image embedding.
        settings: generation settings.
        images: the prompt's images in order; the engine encodes those that no earlier question brought.
        stops: texts that end the answer, beside the end of the model's template.
        seed: seed of the random numbers, where the settings ask for some; None: one that nobody knows.
        grows: whether the text is wanted after every token, and not only at the end.
    """

    model: LoadedModel
    ids: list[int]
    settings: GenerationConfig
    images: Sequence[SentImage] = ()
    stops: tuple[str, ...] = ()
    seed: int | None = None
    grows: bool = True


class Reply:
    """The answer to a question, which the engine's thread writes and any other reads.

    `finish` is to be read before `answer`: the last answer is there when `finish` is set.

    Args:
        question: the question.
        cancel: tells the engine that the answer is not wanted any more.
        notify: called by the engine's thread whenever something has changed; it must return at once.

    Attributes:
        answer: the answer so far; without what later tokens may change, as long as it grows.
        tokens: number of tokens generated.
        finish: why it ended, `STOP`, `LENGTH` or `CANCELLED`; empty: it grows, or waits.
        error: what ended it too early; None: nothing did.
        asked: when it was submitted, by `time.perf_counter`.
        joined: when the work on it began; None: it waits.
        first: when its first token came; None: there is none yet.
        ended: when it ended; None: it has not.
        generator: what turns logits into its tokens, and these into text.
        random: source of its random numbers.
        sampling: settings by which its tokens are chosen; equal for those that can be chosen together.
        request: its row in the running batch.
        cancelled: whether `cancel` was called.
    """

    def __init__(
        self, question: Question, cancel: Callable[[Reply], None], notify: Callable[[], None] | None = None
    ) -> None:
        self.question = question
        self.answer = NOTHING
        self.finish = ""
        self.error: Exception | None = None
        self.asked = time.perf_counter()
        self.joined: float | None = None
        self.first: float | None = None
        self.ended: float | None = None
        self.generator = question.model.model.generator(question.settings, question.stops)
        self.sampling = astuple(replace(question.settings, max_new_tokens=1))
        self.random = Random() if question.seed is None else Random(f"{question.seed}")
        self.request = Request(id(self), len(question.ids))
        self.cancelled = False
        self.tokens = 0
        self._cancel = cancel
        self._notify = notify
        self._changed = threading.Event()

    @property
    def done(self) -> bool:
        """Whether nothing more will come."""
        return bool(self.finish) or self.error is not None

    def cancel(self) -> None:
        """End the work on it; what has come so far stays. Nothing happens where it is done."""
        self._cancel(self)

    def __iter__(self) -> Iterator[Answer]:
        """The answer as it grows, the complete one last; closing the iterator cancels.

        Where tokens come faster than they are read, some steps are left out.

        Raises:
            Exception: What ended the answer too early.
        """
        shown = NOTHING
        try:
            while True:
                done = self.done
                if self.error is not None:
                    raise self.error
                if self.answer is not shown:
                    shown = self.answer
                    yield shown
                if done:
                    return
                self._changed.wait()
                self._changed.clear()
        finally:
            self.cancel()

    def take(self, token: int) -> None:
        """Add a generated token; called by the engine."""
        ids = self.request.ids
        ids.append(token)
        self.tokens += 1
        if self.first is None:
            self.first = time.perf_counter()
        if self.generator.ended(ids):
            self.end(STOP, self.generator.answer(ids))
        elif len(ids) >= self.question.settings.max_new_tokens:
            self.end(LENGTH, self.generator.answer(ids))
        elif self.question.grows:
            self.answer = self.generator.growing_answer(ids)
            self._tell()

    def end(self, finish: str, answer: Answer | None = None) -> None:
        """Nothing more will come; called by the engine.

        Args:
            finish: why.
            answer: the complete answer; None: as far as it came.
        """
        if answer is not None:
            self.answer = answer
        self.ended = time.perf_counter()
        self.finish = finish
        self._tell()

    def fail(self, error: Exception) -> None:
        """Nothing more will come, because of an error, unless it was complete; called by the engine."""
        if not self.done:
            self.ended = time.perf_counter()
            self.error = error
            self._tell()

    def _tell(self) -> None:
        self._changed.set()
        if self._notify is not None:
            self._notify()

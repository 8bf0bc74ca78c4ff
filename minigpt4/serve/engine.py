"""The engine: one thread computes all answers, and questions join and leave its running batch."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType

import torch
from torch import Tensor

from minigpt4.api import LoadedModel
from minigpt4.common.errors import DataError, MiniGPT4Error, counted
from minigpt4.common.schema import GenerationConfig, ServingConfig
from minigpt4.common.types import IMAGE_POSITION
from minigpt4.serve.image_features import ImageFeatures
from minigpt4.serve.lane import Lane, rows_of_lanes
from minigpt4.serve.models import in_own_thread
from minigpt4.serve.reply import CANCELLED, Question, Reply

logger = logging.getLogger(__name__)
COLDEST = 1e-3
"""Temperature below which sampling is greedy: logits divided by less are no longer finite."""
MEMORY_OF_SPEED = 0.9
"""Weight of the earlier answers in the average time of one."""


class QueueFullError(MiniGPT4Error):
    """As many questions wait as may.

    Args:
        message: what a user is told.
        seconds: time after which it is worth asking again.
    """

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class EngineClosedError(MiniGPT4Error):
    """The engine has ended, or is about to."""


class Engine:
    """Answers questions from any number of threads; closing it ends them all.

    The answers do not depend on what else is asked: greedy ones are those of `LoadedModel.describe`, and a seed gives
    the same answer at any time, both as far as the rounding of matrix products allows, which differs with the size of a
    batch (in float32 it tells only tokens apart that are equally likely to six digits).

    Beams, and language models that continuous batching does not know, are computed one question at a time in between.

    Args:
        models: one model, and twins of it by `LoadedModel.with_projection`.
        settings: section `serving` of the configuration.

    Attributes:
        context: tokens of a prompt and its answer, at most.
        features: features of the images that were asked about.
        prompt_tokens: tokens of all prompts that were answered.
        answer_tokens: tokens generated.

    Raises:
        ConfigError: The memory for keys and values is not there.
    """

    def __init__(self, models: Sequence[LoadedModel], settings: ServingConfig) -> None:
        first = models[0].model
        context = getattr(first.llama_model.config, "max_position_embeddings", None)
        self.context = min(settings.context, context or settings.context)
        self.features = ImageFeatures(
            lambda images: first.encode_queries(images.to(first.device)), int(settings.feature_memory * 2**30)
        )
        self.prompt_tokens = 0
        self.answer_tokens = 0
        self._lock = models[0].lock  # that of all twins
        self._max_waiting = settings.waiting
        self._wake = threading.Condition()
        self._closing = False
        self._seconds = 0.0
        llms = {id(model.model.llama_model): model.model.llama_model for model in models}

        def lanes() -> dict[int, Lane]:
            with self._lock:
                rows = rows_of_lanes(first.llama_model, settings.rows, self.context, len(llms))
                return {key: Lane(llm, rows, self.context) for key, llm in llms.items()}

        self._lanes = in_own_thread(lanes)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def rows(self) -> int:
        """Answers that are worked on at the same time."""
        return sum(lane.rows for lane in self._lanes.values())

    @property
    def running(self) -> int:
        """Answers that are worked on now."""
        return sum(len(lane.replies) for lane in self._lanes.values())

    @property
    def waiting(self) -> int:
        """Questions that wait for a row."""
        return sum(len(lane.waiting) for lane in self._lanes.values())

    @property
    def alive(self) -> bool:
        """Whether questions are answered."""
        return self._thread.is_alive() and not self._closing

    def max_prompt_tokens(self, model: LoadedModel, settings: GenerationConfig) -> int:
        """Longest prompt behind which an answer of `settings.max_new_tokens` fits."""
        return min(model.model.max_prompt_tokens(settings), self.context - settings.max_new_tokens)

    def submit(self, question: Question, notify: Callable[[], None] | None = None) -> Reply:
        """Ask; the answer is computed while the caller does something else.

        Args:
            question: what is asked.
            notify: called by the engine's thread whenever the reply has changed; it must return at once.

        Raises:
            DataError: The prompt is too long, or its images are not as many as its placeholders.
            QueueFullError: Too many questions wait.
            EngineClosedError: The engine has ended.
        """
        self._check(question)
        if question.settings.do_sample and question.settings.temperature < COLDEST:
            question = replace(question, settings=replace(question.settings, do_sample=False))
        reply = Reply(question, self._cancel, notify)
        with self._wake:
            if self._closing:
                raise EngineClosedError("the server is ending; ask again when it has been started again")
            if self.waiting >= self._max_waiting:
                raise QueueFullError(
                    f"{self.waiting} requests wait already, as many as may (serving.waiting); ask again later",
                    self.waiting * self._seconds / self.rows,
                )
            self._lane(reply).waiting.append(reply)
            self._wake.notify()
        return reply

    def close(self) -> None:
        """End all work; what is not answered fails with `EngineClosedError`."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, question: Question) -> None:
        """Refuse here, in the caller's thread, what would fail in the engine's.

        Raises:
            DataError: As for `submit`.
        """
        model, longest = question.model.model, question.settings.max_new_tokens
        room = self.max_prompt_tokens(question.model, question.settings)
        if len(question.ids) > room:
            raise DataError(
                f"the prompt has {len(question.ids):,} tokens with its images, and there is room for {max(room, 0):,} "
                f"beside an answer of {longest:,} (serving.context, model.max_context_len, and the language model's "
                "own context); shorten it, or ask for a shorter answer"
            )
        images = len(question.images)
        places = question.ids.count(IMAGE_POSITION)
        if places != images * model.encoder.num_image_tokens:
            raise DataError(
                f"the prompt has room for {places / model.encoder.num_image_tokens:g} images, and there are {images}"
            )

    def _lane(self, reply: Reply) -> Lane:
        return self._lanes[id(reply.question.model.model.llama_model)]

    def _cancel(self, reply: Reply) -> None:
        """Called by any thread."""
        with self._wake:
            reply.cancelled = True
            lane = self._lane(reply)
            if reply in lane.waiting:
                lane.waiting.remove(reply)
                reply.end(CANCELLED)

    def _run(self) -> None:
        lanes = list(self._lanes.values())
        try:
            while True:
                with self._wake:
                    self._wake.wait_for(lambda: self._closing or any(lane.waiting or lane.replies for lane in lanes))
                    if self._closing:
                        return
                for lane in lanes:
                    with self._wake:
                        joining = lane.next_replies()
                    with self._lock:
                        self._turn(lane, joining)
        finally:  # also where a GPU has failed for good
            with self._wake:
                self._closing = True
                left = [reply for lane in lanes for reply in (*lane.waiting, *lane.replies.values())]
                for lane in lanes:
                    lane.waiting.clear()
                    lane.replies.clear()
            for reply in left:
                reply.fail(EngineClosedError("the server has ended before the answer was complete"))

    def _turn(self, lane: Lane, joining: Sequence[Reply]) -> None:
        """The first token of what joins, or else one more of each answer; an error ends only what it came from."""
        for reply in joining:
            reply.joined = time.perf_counter()
            if reply.cancelled:
                reply.end(CANCELLED)
        joining = concerned = [reply for reply in joining if not reply.done]
        try:
            lane.remove_cancelled()
            if joining:
                lane.join(joining, self._prompts(joining))
            elif lane.replies:
                concerned = list(lane.replies.values())
                lane.step()
        except Exception as error:
            logger.exception("%s ended early", counted(len(concerned), "answers"))
            for reply in concerned:
                reply.fail(error)
            lane.remove(concerned)
        for reply in concerned:
            if reply.joined is not None and reply.ended is not None:
                self.prompt_tokens += len(reply.question.ids)
                self.answer_tokens += reply.tokens
                self._seconds += (1 - MEMORY_OF_SPEED) * (reply.ended - reply.joined - self._seconds)

    def _prompts(self, replies: Sequence[Reply]) -> list[Tensor]:
        """Embeddings of each prompt with its images, (T, D); all images are encoded together."""
        new = [image for reply in replies for image in reply.question.images if not image.encoded]
        encoded = self.features.of([image.content for image in new], [image.key for image in new])
        for image, features in zip(new, encoded, strict=True):
            image.content, image.encoded = features, True
        prompts = []
        for reply in replies:
            own = [image.content for image in reply.question.images]
            network = reply.question.model.model
            prompts += network.embed_prompts([reply.question.ids], None, torch.stack(own) if own else None)
        return prompts

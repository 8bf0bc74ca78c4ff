"""A model whose conversations are answered by the engine, those of many users in one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from minigpt4.api import LoadedModel
from minigpt4.common.schema import GenerationConfig
from minigpt4.models.generation import Answer
from minigpt4.serve.engine import Engine
from minigpt4.serve.image_features import SentImage
from minigpt4.serve.reply import Question, Reply


class SharedModel(LoadedModel):
    """Answers as `LoadedModel` does, to many at the same time.

    Args:
        loaded: one of the engine's models.
        engine: computes the answers.
    """

    def __init__(self, loaded: LoadedModel, engine: Engine) -> None:
        super().__init__(loaded.model, loaded.image_processor, loaded.defaults, loaded.prompt, loaded.lock, loaded.name)
        self._engine = engine

    def keep_images(self, pixels: Tensor) -> list[SentImage]:
        """N images (N, 3, S, S) as the engine takes them, which encodes them with the first question about them."""
        return [SentImage(one) for one in pixels]

    def max_prompt_tokens(self, generation: GenerationConfig) -> int:
        """Longest prompt behind which the answer fits into a row of the engine."""
        return max(0, self._engine.max_prompt_tokens(self, generation))

    def answer(
        self, prompts: Sequence[Sequence[int]], images: Sequence[Sequence[SentImage]], generation: GenerationConfig
    ) -> list[Answer]:
        """The answers to encoded prompts; arguments as for `LoadedModel.answer`."""
        replies: list[Reply] = []
        try:
            for ids, own in zip(prompts, images, strict=True):
                replies.append(self._engine.submit(self._asked(ids, own, generation, grows=False)))
            return [list(reply)[-1] for reply in replies]
        finally:
            for reply in replies:
                reply.cancel()

    def answer_ids(
        self, ids: Sequence[int], images: Sequence[SentImage], generation: GenerationConfig
    ) -> Iterator[Answer]:
        """The answer to an encoded prompt as it grows; arguments as for `LoadedModel.answer_ids`."""
        yield from self._engine.submit(self._asked(ids, images, generation))

    def _asked(
        self, ids: Sequence[int], images: Sequence[SentImage], generation: GenerationConfig, grows: bool = True
    ) -> Question:
        return Question(model=self, ids=list(ids), settings=generation, images=tuple(images), grows=grows)

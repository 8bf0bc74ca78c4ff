"""One conversation about pictures: what was said, and how it goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minigpt4.common.errors import DataError
from minigpt4.common.settings import changed
from minigpt4.conversation.dialogue import Dialogue, DialoguePrompt, Turn

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from minigpt4.api import LoadedModel
    from minigpt4.common.settings import GenerationSettings


class Chat:
    """A conversation, for one user; the model may be shared.

    Args:
        loaded: Answers.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self._dialogue = Dialogue(loaded.model.encoder.template)
        self._queries: list[Tensor] = []
        self.sent: DialoguePrompt | None = None

    @property
    def turns(self) -> list[Turn]:
        """Questions and answers so far."""
        return self._dialogue.turns

    @property
    def dropped(self) -> int:
        """Turns that the newest prompt left out because the context was full; pictures are never left out."""
        return self.sent.dropped if self.sent else 0

    @property
    def prompt(self) -> str:
        """The newest prompt as it was sent; `<ImageHere>` stands where a picture's embeddings went."""
        return self.sent.text if self.sent else ""

    def ask(self, question: str, images: Sequence[Any] = (), **settings: Unpack[GenerationSettings]) -> str:
        """The answer to the next question; arguments and errors as for `stream`."""
        for _ in self.stream(question, images, **settings):
            pass
        return self.turns[-1].answer

    def stream(
        self, question: str, images: Sequence[Any] = (), **settings: Unpack[GenerationSettings]
    ) -> Iterator[str]:
        """The answer to the next question as it grows, the last item whole.

        Who stops iterating stops the computation; what was said until then stays in the conversation.

        Args:
            question: Any text.
            images: Pictures that come with it, placed in front unless the text has `<Img><ImageHere></Img>`.
            **settings: Fields of `GenerationConfig`.

        Raises:
            DataError: A picture or question that cannot be used; the conversation is as before.
            ConfigError: A setting that does not exist or cannot be.
        """
        if not isinstance(question, str) or not question.strip():
            raise DataError("the question is empty; write one")
        queries = [query[None] for query in self.loaded.encode(images)] if len(images) else []
        return self._answer(Turn(question, len(images)), queries, settings)

    def regenerate(self, **settings: Unpack[GenerationSettings]) -> Iterator[str]:
        """Another answer to the newest question as it grows.

        Raises:
            DataError: Nothing was asked yet.
        """
        turn, queries = self._taken_back()
        return self._answer(Turn(turn.question, turn.images), queries, settings)

    def undo(self) -> str:
        """Take the newest question, its pictures and its answer back, and return the question.

        Raises:
            DataError: Nothing was asked yet.
        """
        return self._taken_back()[0].question

    def restart(self) -> None:
        """Forget everything."""
        self.turns.clear()
        self._queries.clear()
        self.sent = None

    def _taken_back(self) -> tuple[Turn, list[Tensor]]:
        if not self.turns:
            raise DataError("nothing was asked yet; ask something first")
        turn = self.turns.pop()
        kept = len(self._queries) - turn.images
        queries = self._queries[kept:]
        del self._queries[kept:]
        return turn, queries

    def _answer(self, turn: Turn, queries: list[Tensor], settings: Any) -> Iterator[str]:
        """Everything that may be refused is so now, before the first text is asked for."""
        generation = changed(self.loaded.defaults, settings)
        model = self.loaded.model
        self.sent = self._dialogue.fitted(turn.question, turn.images, model.encoder, model.prompt_room(generation))
        self.turns.append(turn)
        self._queries += queries
        seen = torch.cat(self._queries) if self._queries else None
        return self._growing(turn, self.loaded.answer_ids(self.sent.ids, seen, generation))

    def _growing(self, turn: Turn, steps: Iterator[str]) -> Iterator[str]:
        for turn.answer in steps:
            yield turn.answer

"""One visitor's conversation with one or several models side by side."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt4.api import Chat
from minigpt4.common.errors import DataError
from minigpt4.common.files import replace_lone_surrogates
from minigpt4.processors.image import open_image

if TYPE_CHECKING:
    from minigpt4.api import LoadedModel

Message = dict[str, Any]


class SideBySideChat:
    """The same questions about the same pictures to each model.

    Args:
        models: Who answers.
    """

    def __init__(self, models: Sequence[LoadedModel]) -> None:
        self.chats: list[Chat] = [model.chat() for model in models]
        self.files: list[list[str]] = []

    def ask(self, question: str, files: Sequence[str], settings: dict[str, Any]) -> Iterator[None]:
        """Put a question; each step of what comes back is one more token of each answer.

        Args:
            question: As typed; empty beside a picture: for a description.
            files: Paths of pictures that come with it.
            settings: Fields of `GenerationConfig`.

        Raises:
            MiniGPT4Error: A picture, question or setting that cannot be used; the conversation is as before.
        """
        question = replace_lone_surrogates(question).strip()
        if not question and files:
            question = self.chats[0].loaded.prompt
        if not files and not any(self.files):
            raise DataError("there is no picture yet; add one, then ask about it")
        pictures = [open_image(file, Path(file).name) for file in files]
        answers = []
        try:
            for chat in self.chats:
                answers.append(chat.stream(question, pictures, **settings))
        except Exception:
            for chat in self.chats[: len(answers)]:
                chat.undo()
            raise
        self.files.append(list(files))
        return _together(answers)

    def regenerate(self, settings: dict[str, Any]) -> Iterator[None]:
        """Other answers to the newest question; as `ask`."""
        return _together([chat.regenerate(**settings) for chat in self.chats])

    def undo(self) -> tuple[str, list[str]]:
        """Take the newest question back; returns it with its pictures.

        Raises:
            DataError: Nothing was asked yet.
        """
        questions = [chat.undo() for chat in self.chats]
        return questions[0], self.files.pop()

    def restart(self) -> None:
        """Forget everything."""
        for chat in self.chats:
            chat.restart()
        self.files.clear()

    def messages(self, number: int) -> list[Message]:
        """The conversation with one of the models, as gr.Chatbot takes it."""
        shown: list[Message] = []
        for turn, files in zip(self.chats[number].turns, self.files, strict=False):
            pictures = [{"path": file, "alt_text": "uploaded picture"} for file in files]
            shown.append({"role": "user", "content": [*pictures, _text(turn.question)]})
            if turn.answer:
                shown.append({"role": "assistant", "content": [_text(turn.answer)]})
        return shown

    def remark(self) -> str:
        """What has to be said about the newest prompt; empty: nothing."""
        dropped = max(chat.dropped for chat in self.chats)
        if not dropped:
            return ""
        turns = "The oldest turn does" if dropped == 1 else f"The {dropped} oldest turns do"
        return f"{turns} not fit into the model's context any more: left out of the prompt, pictures are kept."


def _text(text: str) -> Message:
    # gr.Chatbot takes text for HTML, also where it renders no Markdown; what visitors and models write is neither.
    return {"type": "text", "text": html.escape(text, quote=False)}


def _together(answers: Sequence[Iterator[str]]) -> Iterator[None]:
    """A token of each in turn; all are stopped together."""
    try:
        for _ in zip_longest(*answers):
            yield
    finally:
        for answer in answers:
            answer.close()  # type: ignore[attr-defined]

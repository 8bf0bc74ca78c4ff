"""A visitor's conversation with one or several models side by side."""

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
    """A page visitor's conversation: the same questions about the same images to one `Chat` with each model.

    Args:
        models: the models that answer.

    Attributes:
        chats: one conversation a model.
        files: paths of the images of each turn, to show them.
    """

    def __init__(self, models: Sequence[LoadedModel]) -> None:
        self.chats: list[Chat] = [model.chat() for model in models]
        self.files: list[list[str]] = []

    def ask(self, question: str, files: Sequence[str], settings: dict[str, Any]) -> Iterator[None]:
        """Ask every model; each step of the iterator adds one token to each answer.

        Args:
            question: text as typed; empty beside an image: the model's default prompt.
            files: paths of images that come with it.
            settings: fields of `GenerationConfig`.

        Raises:
            MiniGPT4Error: An image, question or setting that cannot be used; the conversation is unchanged.
        """
        question = replace_lone_surrogates(question).strip()
        if not question and files:
            question = self.chats[0].loaded.prompt
        if not files and not any(self.files):
            raise DataError("there is no image yet; add one, then ask about it")
        images = [open_image(file, Path(file).name) for file in files]
        answers: list[Iterator[str]] = []
        try:
            for chat in self.chats:
                answers.append(chat.stream(question, images, **settings))
        except Exception:
            for chat in self.chats[: len(answers)]:
                chat.undo()
            raise
        self.files.append(list(files))
        return _together(answers)

    def regenerate(self, settings: dict[str, Any]) -> Iterator[None]:
        """Other answers to the newest question; errors as for `ask`."""
        return _together([chat.regenerate(**settings) for chat in self.chats])

    def undo(self) -> tuple[str, list[str]]:
        """Remove the newest turn; returns its question and the paths of its images.

        Raises:
            DataError: There is no question yet.
        """
        questions = [chat.undo() for chat in self.chats]
        return questions[0], self.files.pop()

    def restart(self) -> None:
        """Forget everything."""
        for chat in self.chats:
            chat.restart()
        self.files.clear()

    def messages(self, number: int) -> list[Message]:
        """The conversation with model `number`, as gr.Chatbot takes it."""
        shown: list[Message] = []
        for turn, files in zip(self.chats[number].turns, self.files, strict=False):
            images = [{"path": file, "alt_text": "uploaded image"} for file in files]
            shown.append({"role": "user", "content": [*images, _text(turn.question)]})
            if turn.answer:
                shown.append({"role": "assistant", "content": [_text(turn.answer)]})
        return shown

    def remark(self) -> str:
        """A remark on the newest prompt where it left turns out; otherwise empty."""
        dropped = max(chat.dropped for chat in self.chats)
        if not dropped:
            return ""
        turns = "The oldest turn does" if dropped == 1 else f"The {dropped} oldest turns do"
        return f"{turns} not fit into the model's context any more: left out of the prompt, images are kept."


def _text(text: str) -> Message:
    # gr.Chatbot interprets text as HTML even where it renders no Markdown; visitors and models write plain text.
    return {"type": "text", "text": html.escape(text, quote=False)}


def _together(answers: Sequence[Iterator[str]]) -> Iterator[None]:
    """One token of each answer at a step; closing stops all of them."""
    try:
        for _ in zip_longest(*answers):
            yield
    finally:
        for answer in answers:
            answer.close()  # type: ignore[attr-defined]

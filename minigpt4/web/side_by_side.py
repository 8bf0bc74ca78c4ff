"""A visitor's conversation with one or several models side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt4.api import Chat
from minigpt4.common.boxes import find_boxes
from minigpt4.common.errors import DataError
from minigpt4.common.files import replace_lone_surrogates
from minigpt4.processors.image import open_image

if TYPE_CHECKING:
    from minigpt4.api import LoadedModel


@dataclass(slots=True)
class Asked:
    """What came with a question.

    Attributes:
        files: paths of its images.
        settings: fields of `GenerationConfig` for its answers.
    """

    files: list[str]
    settings: dict[str, Any]


class SideBySideChat:
    """A page visitor's conversation: the same questions about the same images to one `Chat` with each model.

    Args:
        models: the models that answer.

    Attributes:
        chats: one conversation a model.
        asked: images and settings of each turn.
        finished: how often something was finished, for scripts that wait for it.
    """

    def __init__(self, models: Sequence[LoadedModel]) -> None:
        self.chats: list[Chat] = [model.chat() for model in models]
        self.asked: list[Asked] = []
        self.finished = 0

    def ask(
        self, question: str, files: Sequence[str], settings: dict[str, Any], system: str | None = None
    ) -> Iterator[None]:
        """Ask every model; each step of the iterator adds one token to each answer.

        Args:
            question: text as typed; empty beside an image: the model's default prompt.
            files: paths of images that come with it.
            settings: fields of `GenerationConfig`.
            system: system message of this and later prompts; None: as before.

        Raises:
            MiniGPT4Error: An image, question, message or setting that cannot be used; the turns are unchanged.
        """
        question = replace_lone_surrogates(question).strip()
        if not question and files:
            question = self.chats[0].loaded.prompt
        if not files and not any(asked.files for asked in self.asked):
            raise DataError("there is no image yet; add one, then ask about it")
        images = [open_image(file, Path(file).name) for file in files]
        self._set_system(system)
        answers: list[Iterator[str]] = []
        try:
            for chat in self.chats:
                answers.append(chat.stream(question, images, **settings))
        except Exception:
            for chat in self.chats[: len(answers)]:
                chat.undo()
            raise
        self.asked.append(Asked(list(files), settings))
        return _together(answers)

    def regenerate(self, settings: dict[str, Any], system: str | None = None) -> Iterator[None]:
        """Other answers to the newest question; arguments and errors as for `ask`."""
        self._set_system(system)
        answers = [chat.regenerate(**settings) for chat in self.chats]
        self.asked[-1].settings = settings
        return _together(answers)

    def undo(self) -> tuple[str, list[str]]:
        """Remove the newest turn; returns its question and the paths of its images.

        Raises:
            DataError: There is no question yet.
        """
        questions = [chat.undo() for chat in self.chats]
        return questions[0], self.asked.pop().files

    def _set_system(self, message: str | None) -> None:
        if message is not None:
            for chat in self.chats:
                chat.system = replace_lone_surrogates(message)

    def restart(self) -> None:
        """Forget everything."""
        for chat in self.chats:
            chat.restart()
        self.asked.clear()

    def view(self, number: int, kept: int = 0) -> list[dict[str, Any]]:
        """Turns with a model, as the page's script shows them (assets/web/conversation.js).

        Args:
            number: index of the model.
            kept: number of turns at the beginning that are left out.
        """
        latest: list[str] = []
        shown = []
        for place, (turn, asked) in enumerate(zip(self.chats[number].turns, self.asked, strict=False)):
            latest = asked.files[-1:] or latest
            if place < kept:
                continue
            boxes = find_boxes(turn.answer)
            shown.append(
                {
                    "question": turn.question,
                    "images": [_file(path) for path in asked.files],
                    "answer": turn.answer,
                    "figures": figures(turn.tokens, turn.seconds),
                    "remark": turn.remark,
                    "boxes": [asdict(box) for box in boxes],
                    "boxed": [_file(path) for path in latest] if boxes else [],
                }
            )
        return shown

    def remark(self) -> str:
        """A remark on the newest prompt where it left turns out; otherwise empty."""
        dropped = max(chat.dropped for chat in self.chats)
        if not dropped:
            return ""
        turns = "The oldest turn does" if dropped == 1 else f"The {dropped} oldest turns do"
        return f"{turns} not fit into the model's context any more: left out of the prompt, images are kept."


def _file(path: str) -> dict[str, Any]:
    """An uploaded file as Gradio takes it; the page's script is given its URL."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def figures(tokens: int, seconds: float) -> str:
    """How fast an answer came; empty where there is none."""
    if not tokens:
        return ""
    return f"{tokens} token{'s' * (tokens != 1)} in {seconds:.1f} s, {tokens / max(seconds, 1e-6):.1f} a second"


def _together(answers: Sequence[Iterator[str]]) -> Iterator[None]:
    """One token of each answer at a step; closing stops all of them."""
    try:
        for _ in zip_longest(*answers):
            yield
    finally:
        for answer in answers:
            answer.close()  # type: ignore[attr-defined]

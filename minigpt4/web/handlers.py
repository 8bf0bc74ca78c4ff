"""What happens when something is pressed; all that a visitor said is in the `Talk` of his session."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from minigpt4.api import LoadedModel
from minigpt4.common.errors import MiniGPT4Error
from minigpt4.processors.pictures import to_picture
from minigpt4.web.talk import Talk

Update = tuple[Any, ...]


def generation_settings(
    max_new_tokens: float, num_beams: float, greedy: bool, temperature: float, top_p: float, repetition_penalty: float
) -> dict[str, Any]:
    """The page's controls, in their order, as fields of `GenerationConfig`."""
    return {
        "max_new_tokens": int(max_new_tokens),
        "num_beams": int(num_beams),
        "do_sample": not greedy,
        "temperature": float(temperature),
        "top_p": float(top_p),
        "repetition_penalty": float(repetition_penalty),
    }


def notice(text: str, kind: str = "remark") -> Any:
    """A line for people under the conversation; nothing in `text` is markup."""
    return gr.update(value=f'<div class="notice {kind}" role="status">{html.escape(text)}</div>', visible=bool(text))


class Handlers:
    """The page's handlers. Each returns or yields (talk, conversations..., notice, prompt as sent, text box, Stop).

    Args:
        models: Who answers, side by side.
    """

    def __init__(self, models: Sequence[LoadedModel]) -> None:
        self.models = models

    def ask(self, talk: Talk | None, message: dict[str, Any], *controls: Any) -> Iterator[Update]:
        """Answer what is in the text box, token by token."""
        talk = talk or Talk(self.models)
        files = message["files"]
        yield from self._growing(
            talk, lambda: talk.ask(message["text"], files, generation_settings(*controls)), message
        )

    def regenerate(self, talk: Talk | None, *controls: Any) -> Iterator[Update]:
        """Answer the newest question again."""
        talk = talk or Talk(self.models)
        yield from self._growing(talk, lambda: talk.regenerate(generation_settings(*controls)))

    def undo(self, talk: Talk | None) -> Update:
        """Take the newest question back into the text box."""
        talk = talk or Talk(self.models)
        try:
            question, files = talk.undo()
        except MiniGPT4Error as error:
            return self._shown(talk, gr.skip(), str(error))
        return self._shown(talk, {"text": question, "files": files})

    def restart(self, talk: Talk | None) -> Update:
        """Begin anew."""
        talk = talk or Talk(self.models)
        talk.restart()
        return self._shown(talk, {"text": "", "files": []})

    def stopped(self, talk: Talk | None) -> Update:
        """What is there after the answer was stopped."""
        return self._shown(talk or Talk(self.models), gr.skip())

    def describe(self, image: str, prompt: str, *controls: Any) -> str:
        """One answer about one picture, for other programs.

        Raises:
            gr.Error: A picture, prompt or setting that cannot be used.
        """
        try:
            if not image:
                raise MiniGPT4Error("no image was given")
            picture = to_picture(image, Path(image).name)
            return self.models[0].describe(picture, prompt or None, **generation_settings(*controls))
        except MiniGPT4Error as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from error

    def _growing(self, talk: Talk, begin: Callable[[], Iterator[None]], typed: Any = None) -> Iterator[Update]:
        try:
            steps = begin()
        except MiniGPT4Error as error:
            # What was typed stays in the box, to be mended.
            yield self._shown(talk, typed or gr.skip(), str(error))
            return
        try:
            yield self._shown(talk, {"text": "", "files": []} if typed else gr.skip(), stoppable=True)
            for _ in steps:
                yield self._shown(talk, gr.skip(), stoppable=True)
        finally:
            steps.close()  # type: ignore[attr-defined]
        yield self._shown(talk, gr.skip())

    def _shown(self, talk: Talk, box: Any, error: str = "", stoppable: bool = False) -> Update:
        conversations = [talk.messages(number) for number in range(len(self.models))]
        line = notice(error, "error") if error else notice(talk.remark())
        return (talk, *conversations, line, talk.chats[0].prompt, box, gr.update(interactive=stoppable))

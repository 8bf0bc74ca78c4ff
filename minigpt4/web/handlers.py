"""What the controls of the chat page do."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from minigpt4.api import LoadedModel
from minigpt4.common.errors import MiniGPT4Error
from minigpt4.processors.image import open_image
from minigpt4.web.export import as_json, as_markdown
from minigpt4.web.server import EXAMPLES
from minigpt4.web.side_by_side import SideBySideChat

Update = tuple[Any, ...]
"""(chat, conversations..., notice, prompt as sent, text box, buttons of `BUTTONS`...), the page's outputs."""
BUTTONS = ("stop", "again", "undo", "restart", "json", "markdown")
"""Buttons that can be pressed only while there is something to do."""
EMPTY_BOX: dict[str, Any] = {"text": "", "files": []}


class Handlers:
    """What the page's controls do. Each handler returns or yields an `Update`, unless it says something else.

    A visitor's `SideBySideChat` is None before the first question. `system` is the system message in the page's
    settings, `controls` are the values for `generation_settings`.

    Args:
        models: the models that answer, side by side.
        labels: their names.
    """

    def __init__(self, models: Sequence[LoadedModel], labels: Sequence[str]) -> None:
        self.models = models
        self.labels = labels

    def ask(
        self, chat: SideBySideChat | None, message: dict[str, Any], system: str, *controls: Any
    ) -> Iterator[Update]:
        """Answer what is in the text box, token by token; where it cannot be asked, it stays there."""
        chat = chat or SideBySideChat(self.models)
        settings = generation_settings(*controls)
        yield from self._growing(chat, lambda: chat.ask(message["text"], message["files"], settings, system), message)

    def example(
        self, event: gr.SelectData, chat: SideBySideChat | None, system: str, *controls: Any
    ) -> Iterator[Update]:
        """Ask an example, whose number the event brings."""
        examples = example_questions()
        number = event.index if isinstance(event.index, int) and 0 <= event.index < len(examples) else 0
        file, question = examples[number]
        yield from self.ask(chat, {"text": question, "files": [str(file)]}, system, *controls)

    def regenerate(self, chat: SideBySideChat | None, system: str, *controls: Any) -> Iterator[Update]:
        """Answer the newest question again."""
        chat = chat or SideBySideChat(self.models)
        yield from self._growing(chat, lambda: chat.regenerate(generation_settings(*controls), system))

    def undo(self, chat: SideBySideChat | None) -> Update:
        """Take the newest question back into the text box."""
        chat = chat or SideBySideChat(self.models)
        try:
            question, files = chat.undo()
        except MiniGPT4Error as error:
            return self._update(chat, gr.skip(), str(error))
        return self._update(chat, {"text": question, "files": files})

    def restart(self, chat: SideBySideChat | None) -> Update:
        """Clear the conversation."""
        chat = chat or SideBySideChat(self.models)
        chat.restart()
        return self._update(chat, EMPTY_BOX)

    def stopped(self, chat: SideBySideChat | None) -> Update:
        """Show the answer as far as it came before it was stopped."""
        return self._update(chat or SideBySideChat(self.models), gr.skip())

    def json(self, chat: SideBySideChat | None) -> str:
        """The conversation in JSON."""
        return as_json(chat or SideBySideChat(self.models), self.labels)

    def markdown(self, chat: SideBySideChat | None) -> str:
        """The conversation in Markdown."""
        return as_markdown(chat or SideBySideChat(self.models), self.labels)

    def describe(
        self,
        image: str,
        prompt: str,
        max_new_tokens: float,
        num_beams: float,
        do_sample: bool,
        temperature: float,
        top_p: float,
        repetition_penalty: float,
    ) -> str:
        """The endpoint `/describe`: one answer of the first model about one image.

        The arguments are the endpoint's parameters, in this order; all but `image` have the page's defaults.

        Args:
            image: path of the uploaded file.
            prompt: the question; empty: the model's default.
            max_new_tokens: longest answer in tokens.
            num_beams: beam size; 1: no beam search.
            do_sample: the switch "Sampling"; false: greedy decoding.
            temperature: only when sampling.
            top_p: only when sampling.
            repetition_penalty: 1: none.

        Raises:
            gr.Error: An image, prompt or setting that cannot be used.
        """
        try:
            if not image:
                raise MiniGPT4Error("no image was given")
            opened = open_image(image, Path(image).name)
            settings = generation_settings(max_new_tokens, num_beams, do_sample, temperature, top_p, repetition_penalty)
            return self.models[0].describe(opened, prompt or None, **settings)
        except MiniGPT4Error as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from error

    def _growing(
        self, chat: SideBySideChat, start: Callable[[], Iterator[None]], typed: dict[str, Any] | None = None
    ) -> Iterator[Update]:
        """An update for each token.

        Args:
            chat: the conversation.
            start: asks the question.
            typed: content of the text box, which stays there where it cannot be asked; None: the question is not new.
        """
        try:
            steps = start()
        except MiniGPT4Error as error:
            yield self._update(chat, typed or gr.skip(), str(error))
            return
        try:
            yield self._update(chat, EMPTY_BOX if typed else gr.skip(), busy=True)
            for _ in steps:
                yield self._update(chat, gr.skip(), busy=True)
        except MiniGPT4Error as error:  # such as a server that is ending
            yield self._update(chat, gr.skip(), str(error))
            return
        except Exception:  # such as a GPU without memory left: the page must not wait for the rest
            yield self._update(chat, gr.skip(), "the answer ended early, by an error that the server's terminal shows")
            raise
        finally:
            steps.close()  # type: ignore[attr-defined]
        yield self._update(chat, gr.skip())

    def _update(self, chat: SideBySideChat, box: Any, error: str = "", busy: bool = False) -> Update:
        """What the page shows now; while an answer grows, only its turn is sent, and the page keeps those before."""
        chat.finished += not busy
        kept = max(0, len(chat.asked) - 1) if busy else 0
        conversations = [
            {"turns": chat.view(number, kept), "kept": kept, "busy": busy, "finished": chat.finished}
            for number in range(len(self.models))
        ]
        asked = bool(chat.asked)
        possible = {"stop": busy, "restart": asked or bool(error)}
        buttons = [gr.update(interactive=possible.get(name, asked and not busy)) for name in BUTTONS]
        line = notice(error, "error") if error else notice(chat.remark())
        return (chat, *conversations, line, chat.chats[0].prompt, box, *buttons)


def generation_settings(
    max_new_tokens: float,
    num_beams: float,
    do_sample: bool,
    temperature: float,
    top_p: float,
    repetition_penalty: float,
) -> dict[str, Any]:
    """The values of the page's controls, in their order, as fields of `GenerationConfig`; sliders give floats."""
    return {
        "max_new_tokens": int(max_new_tokens),
        "num_beams": int(num_beams),
        "do_sample": bool(do_sample),
        "temperature": float(temperature),
        "top_p": float(top_p),
        "repetition_penalty": float(repetition_penalty),
    }


def example_questions() -> list[tuple[Path, str]]:
    """(image file, question) of each example."""
    prompts = json.loads((EXAMPLES / "prompts.json").read_text(encoding="utf-8"))
    return [(EXAMPLES / name, prompt) for name, prompt in prompts.items()]


def notice(text: str, kind: str = "remark") -> Any:
    """A line of text under the conversation; nothing in `text` is markup."""
    return gr.update(value=f'<div class="notice {kind}" role="status">{html.escape(text)}</div>', visible=bool(text))

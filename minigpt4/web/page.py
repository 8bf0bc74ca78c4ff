"""The chat page: its layout, what its controls do, and the server that shows it."""

from __future__ import annotations

import html
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from minigpt4.api import LoadedModel
from minigpt4.common.errors import ConfigError, MiniGPT4Error
from minigpt4.common.files import PACKAGE
from minigpt4.processors.image import open_image
from minigpt4.web.side_by_side import SideBySideChat

EXAMPLES = PACKAGE / "assets" / "examples"
CSS = PACKAGE / "assets" / "web" / "page.css"
LOCAL = "127.0.0.1"
"""Address the server listens on: this machine only."""
HOSTS = (LOCAL, "localhost")
"""Names under which a browser on this machine opens the page."""
CONCURRENT_ANSWERS = 4
"""Answers that grow at the same time, a token of each in turn; each holds its keys and values in memory."""
MAX_QUEUE = 64
"""Requests that wait; later ones are refused with a message."""
UPLOAD_LIFETIME = 24 * 60 * 60
"""Seconds after which uploaded images are deleted."""
MAX_UPLOAD = "50mb"
Update = tuple[Any, ...]
"""(chat, conversations..., notice, prompt as sent, text box, Stop button), the values of the page's outputs."""


def build_page(models: Sequence[LoadedModel], labels: Sequence[str], title: str = "MiniGPT-4") -> gr.Blocks:
    """The page.

    Args:
        models: the models that answer, side by side.
        labels: their names.
        title: heading of the page.
    """
    handlers = Handlers(models)
    cleanup = (UPLOAD_LIFETIME, UPLOAD_LIFETIME)
    with gr.Blocks(title=title, analytics_enabled=False, fill_height=True, delete_cache=cleanup) as page:
        chat = gr.State(None)
        gr.HTML(f"<h1>{title}</h1><p>Add an image, then ask about it.</p>", elem_id="heading", padding=False)
        with gr.Row(elem_id="body"):
            with gr.Column(scale=3, min_width=320):
                with gr.Row(elem_id="conversations"):
                    conversations = [_conversation(label, number) for number, label in enumerate(labels)]
                remark = gr.HTML(elem_id="remark", padding=False, visible=False)
                box = _box()
                buttons = _buttons()
                _examples(box)
            with gr.Column(scale=1, min_width=240):
                controls = _controls(models[0])
                with gr.Accordion("Prompt as sent", open=False):
                    sent = gr.Textbox(show_label=False, lines=6, interactive=False, elem_id="sent", buttons=["copy"])
        shown = [chat, *conversations, remark, sent, box, buttons["stop"]]
        _connect(handlers, chat, conversations, box, buttons, controls, shown)
        _api(handlers, models[0], controls)
    page.queue(max_size=MAX_QUEUE, default_concurrency_limit=None)
    return page


def serve(page: gr.Blocks, port: int | None = None, share: bool = False, block: bool = True) -> str:
    """Serve the page on this machine; without a public link, requests under other host names are refused.

    Args:
        page: the page of `build_page`.
        port: port to listen on; None: the first free one from 7860.
        share: also make a public link, forwarded by Gradio's servers.
        block: return only when the server has stopped.

    Returns:
        The page's address.

    Raises:
        ConfigError: The port is taken, or there is none of that number.
    """
    try:
        _, url, _ = page.launch(
            server_name=LOCAL,
            server_port=port,
            share=share,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css_paths=CSS,
            footer_links=["api"],
            max_file_size=MAX_UPLOAD,
            app_kwargs={} if share else {"lifespan": _guard},
            prevent_thread_lock=not block,
            quiet=not block,
            ssr_mode=False,
        )
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--port: {port or '7860 and the next hundred'} cannot be used; choose another") from error
    return url


class LocalOnly:
    """Refuses what a page of another site makes a browser on this machine send.

    Any site can point a name of its own at this machine (DNS rebinding), so the Host must be one of `HOSTS`; and the
    Origin, which browsers send with requests from a page, must be that of this page.

    Args:
        app: the server that gets the other requests.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            host = headers.get("host", "").lower()
            origin = headers.get("origin")
            foreign = origin is not None and origin.lower().partition("://")[2] != host
            if foreign or host.partition(":")[0] not in HOSTS:
                address = f"http://{LOCAL}:{scope['server'][1]}/"
                refusal = PlainTextResponse(f"open this page on its own machine as {address}\n", status_code=403)
                await refusal(scope, receive, send)
                return
        await self.app(scope, receive, send)


@asynccontextmanager
async def _guard(app: FastAPI) -> AsyncIterator[None]:
    """Put `LocalOnly` around the server before its first request.

    Here, because Gradio puts its own CORS layer around all middleware that it is given, and that layer allows any
    origin where the host is not local.
    """
    assert app.middleware_stack is not None
    app.middleware_stack = LocalOnly(app.middleware_stack)
    yield


class Handlers:
    """What the page's controls do. Each handler returns or yields an `Update`, except `describe`.

    A visitor's `SideBySideChat` is None before the first question.

    Args:
        models: the models that answer, side by side.
    """

    def __init__(self, models: Sequence[LoadedModel]) -> None:
        self.models = models

    def ask(self, chat: SideBySideChat | None, message: dict[str, Any], *controls: Any) -> Iterator[Update]:
        """Answer what is in the text box, token by token."""
        chat = chat or SideBySideChat(self.models)
        text, files = message["text"], message["files"]
        yield from self._growing(chat, lambda: chat.ask(text, files, generation_settings(*controls)), message)

    def regenerate(self, chat: SideBySideChat | None, *controls: Any) -> Iterator[Update]:
        """Answer the newest question again."""
        chat = chat or SideBySideChat(self.models)
        yield from self._growing(chat, lambda: chat.regenerate(generation_settings(*controls)))

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
        return self._update(chat, {"text": "", "files": []})

    def stopped(self, chat: SideBySideChat | None) -> Update:
        """Show the answer as far as it came before it was stopped."""
        return self._update(chat or SideBySideChat(self.models), gr.skip())

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
        """An update for each token; where `start` fails, what was typed stays in the text box."""
        try:
            steps = start()
        except MiniGPT4Error as error:
            yield self._update(chat, typed or gr.skip(), str(error))
            return
        try:
            yield self._update(chat, {"text": "", "files": []} if typed else gr.skip(), stoppable=True)
            for _ in steps:
                yield self._update(chat, gr.skip(), stoppable=True)
        finally:
            steps.close()  # type: ignore[attr-defined]
        yield self._update(chat, gr.skip())

    def _update(self, chat: SideBySideChat, box: Any, error: str = "", stoppable: bool = False) -> Update:
        conversations = [chat.messages(number) for number in range(len(self.models))]
        line = notice(error, "error") if error else notice(chat.remark())
        return (chat, *conversations, line, chat.chats[0].prompt, box, gr.update(interactive=stoppable))


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


def notice(text: str, kind: str = "remark") -> Any:
    """A line of text under the conversation; nothing in `text` is markup."""
    return gr.update(value=f'<div class="notice {kind}" role="status">{html.escape(text)}</div>', visible=bool(text))


def _conversation(label: str, number: int) -> gr.Chatbot:
    # Without buttons: what they copy has `&lt;` for `<` (`SideBySideChat.messages`).
    return gr.Chatbot(
        label=label,
        elem_id=f"conversation{number}",
        height="55vh",
        min_width=280,
        render_markdown=False,
        sanitize_html=True,
        allow_tags=False,
        latex_delimiters=[],
        buttons=[],
        allow_file_downloads=False,
        feedback_options=None,
        placeholder="Answers appear here.",
    )


def _box() -> gr.MultimodalTextbox:
    return gr.MultimodalTextbox(
        placeholder="Ask about the image; drop, paste or choose one or more",
        label="Your question",
        show_label=False,
        file_types=["image"],
        file_count="multiple",
        sources=["upload"],
        elem_id="box",
        max_plain_text_length=100_000,
    )


def _buttons() -> dict[str, gr.Button]:
    with gr.Row(elem_id="buttons"):
        return {
            "stop": gr.Button("Stop", variant="stop", size="md", min_width=70, elem_id="stop", interactive=False),
            "again": gr.Button("Regenerate", size="md", min_width=70, elem_id="again"),
            "undo": gr.Button("Undo", size="md", min_width=70, elem_id="undo"),
            "restart": gr.Button("Restart", size="md", min_width=70, elem_id="restart"),
        }


def _examples(box: gr.MultimodalTextbox) -> None:
    prompts = json.loads((EXAMPLES / "prompts.json").read_text(encoding="utf-8"))
    gr.Examples(
        [[{"text": prompt, "files": [str(EXAMPLES / name)]}] for name, prompt in prompts.items()],
        inputs=[box],
        label="Examples",
        elem_id="examples",
        api_visibility="private",
    )


def _controls(model: LoadedModel) -> list[Any]:
    """The arguments of `generation_settings`, in their order."""
    now = model.defaults
    with gr.Accordion("Settings", open=True, elem_id="settings"):
        return [
            gr.Slider(1, max(500, now.max_new_tokens), now.max_new_tokens, step=1, label="Max new tokens"),
            gr.Slider(
                1, 8, now.num_beams, step=1, label="Beam size", info="More than 1: the answer comes all at once."
            ),
            gr.Checkbox(now.do_sample, label="Sampling", info="Off: greedy decoding."),
            gr.Slider(0.1, 2, now.temperature, step=0.05, label="Temperature", info="Only when sampling."),
            gr.Slider(0.05, 1, now.top_p, step=0.05, label="Top-p", info="Only when sampling."),
            gr.Slider(0.5, 2, now.repetition_penalty, step=0.05, label="Repetition penalty", info="1: none."),
        ]


def _connect(
    handlers: Handlers,
    chat: gr.State,
    conversations: list[gr.Chatbot],
    box: gr.MultimodalTextbox,
    buttons: dict[str, gr.Button],
    controls: list[Any],
    shown: list[Any],
) -> None:
    answering: dict[str, Any] = {
        "outputs": shown,
        "concurrency_limit": CONCURRENT_ANSWERS,
        "concurrency_id": "model",
        "show_progress": "hidden",
        "api_visibility": "private",
    }
    asked = box.submit(handlers.ask, [chat, box, *controls], **answering)
    again = buttons["again"].click(handlers.regenerate, [chat, *controls], cancels=[asked], **answering)
    # A cancelled generator is closed, which ends the computation.
    ending: dict[str, Any] = {"outputs": shown, "cancels": [asked, again], "api_visibility": "private"}
    buttons["stop"].click(handlers.stopped, [chat], **ending)
    buttons["undo"].click(handlers.undo, [chat], **ending)
    gr.on(
        [buttons["restart"].click, *(conversation.clear for conversation in conversations)],
        handlers.restart,
        [chat],
        **ending,
    )


def _api(handlers: Handlers, model: LoadedModel, controls: list[Any]) -> None:
    """The endpoint `/describe` for gradio_client; see `Handlers.describe`."""
    with gr.Row(visible=False):
        image = gr.File(type="filepath", label="image")
        prompt = gr.Textbox(model.prompt, label="prompt")
        answer = gr.Textbox(label="answer")
        gr.Button("describe").click(
            handlers.describe,
            [image, prompt, *controls],
            answer,
            api_name="describe",
            concurrency_limit=CONCURRENT_ANSWERS,
            concurrency_id="model",
        )

"""The layout of the chat page, and which of its controls calls which handler."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from typing import Any

import gradio as gr

from minigpt4.api import LoadedModel
from minigpt4.common.files import PACKAGE
from minigpt4.web.handlers import BUTTONS, Handlers, example_questions

CONVERSATION_SCRIPT = PACKAGE / "assets" / "web" / "conversation.js"
MAX_QUEUE = 64
"""Requests that wait; later ones are refused with a message."""
UPLOAD_LIFETIME = 24 * 60 * 60
"""Seconds after which uploaded images are deleted."""
SAVE = """(text) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "%s"}));
  link.download = "%s";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}"""
"""Script that saves a text as a file of a type and name."""


def build_page(
    models: Sequence[LoadedModel], labels: Sequence[str], visitors: int, title: str = "MiniGPT-4"
) -> gr.Blocks:
    """The page.

    Args:
        models: the models that answer, side by side.
        labels: their names.
        visitors: visitors who are answered at the same time; others wait.
        title: heading of the page.
    """
    handlers = Handlers(models, labels)
    cleanup = (UPLOAD_LIFETIME, UPLOAD_LIFETIME)
    with gr.Blocks(title=title, analytics_enabled=False, fill_height=True, delete_cache=cleanup) as page:
        chat = gr.State(None)
        gr.HTML(_heading(title, models[0]), elem_id="heading", padding=False)
        with gr.Row(elem_id="body"):
            with gr.Column(scale=3, min_width=320):
                with gr.Row(elem_id="conversations"):
                    conversations = [
                        _conversation(label, number, model.tasks)
                        for number, (label, model) in enumerate(zip(labels, models, strict=True))
                    ]
                remark = gr.HTML(elem_id="remark", padding=False, visible=False)
                box = _box()
                buttons = _buttons()
            with gr.Column(scale=1, min_width=260):
                system, controls = _settings(models[0])
                with gr.Accordion("Prompt as sent", open=False):
                    sent = gr.Textbox(show_label=False, lines=6, interactive=False, elem_id="sent", buttons=["copy"])
        shown = [chat, *conversations, remark, sent, box, *buttons.values()]
        _connect(handlers, chat, conversations, box, buttons, [system, *controls], shown, visitors)
        _connect_saving(handlers, chat, buttons)
        _api(handlers, models[0], controls, visitors)
    page.queue(max_size=MAX_QUEUE, default_concurrency_limit=None)
    return page


def _heading(title: str, model: LoadedModel) -> str:
    note = f'<p class="notice toy" role="note">{html.escape(model.note)}</p>' if model.note else ""
    return f'<h1>{html.escape(title)}</h1><p class="model">{html.escape(model.summary)}</p>{note}'


def _conversation(label: str, number: int, tasks: Sequence[str]) -> gr.HTML:
    """One model's conversation, drawn by a script of our own.

    gr.Chatbot takes every text for HTML, so that texts had to be escaped, and were copied with `&lt;` for `<`.
    """
    examples = [
        {"image": f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}", "question": question}
        for file, question in example_questions()
    ]
    return gr.HTML(
        {"turns": [], "kept": 0, "busy": False, "finished": 0},
        html_template="",
        js_on_load=CONVERSATION_SCRIPT.read_text(encoding="utf-8"),
        apply_default_css=False,
        elem_id=f"conversation{number}",
        elem_classes=["conversation"],
        min_width=280,
        model=label,
        examples=examples,
        tasks=list(tasks),
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
    """The buttons under the text box, by their names in `BUTTONS`; nothing can be done yet."""
    labels = ("Stop", "Regenerate", "Undo", "Restart", "Save JSON", "Save Markdown")
    with gr.Row(elem_id="buttons"):
        return {
            name: gr.Button(
                label,
                variant="stop" if name == "stop" else "secondary",
                size="md",
                min_width=70,
                elem_id=name,
                interactive=False,
            )
            for name, label in zip(BUTTONS, labels, strict=True)
        }


def _settings(model: LoadedModel) -> tuple[gr.Textbox, list[Any]]:
    """The system message, and the arguments of `generation_settings` in their order."""
    now = model.defaults
    with gr.Accordion("Settings", open=True, elem_id="settings"):
        system = gr.Textbox(
            model.chat().system,
            label="System message",
            info="In front of the conversation, from the next answer on; empty: none.",
            lines=1,
            max_lines=6,
            elem_id="system",
        )
        tokens = gr.Slider(1, max(500, now.max_new_tokens), now.max_new_tokens, step=1, label="Max new tokens")
        beams = gr.Slider(
            1, 8, now.num_beams, step=1, label="Beam size", info="More than 1: the answer comes all at once."
        )
        sampling = gr.Checkbox(now.do_sample, label="Sampling", info="Off: greedy decoding.", elem_id="sampling")
        only = [
            gr.Slider(0.1, 2, now.temperature, step=0.05, label="Temperature", interactive=now.do_sample),
            gr.Slider(0.05, 1, now.top_p, step=0.05, label="Top-p", interactive=now.do_sample),
        ]
        penalty = gr.Slider(0.5, 2, now.repetition_penalty, step=0.05, label="Repetition penalty", info="1: none.")
    sampling.change(
        lambda on: [gr.update(interactive=on)] * len(only),
        sampling,
        only,
        queue=False,
        api_visibility="private",
        show_progress="hidden",
    )
    return system, [tokens, beams, sampling, *only, penalty]


def _connect(
    handlers: Handlers,
    chat: gr.State,
    conversations: list[gr.HTML],
    box: gr.MultimodalTextbox,
    buttons: dict[str, gr.Button],
    settings: list[Any],
    shown: list[Any],
    visitors: int,
) -> None:
    answering: dict[str, Any] = {
        "outputs": shown,
        "concurrency_limit": visitors,
        "concurrency_id": "model",
        "show_progress": "hidden",
        "api_visibility": "private",
    }
    asked = box.submit(handlers.ask, [chat, box, *settings], **answering)
    again = buttons["again"].click(handlers.regenerate, [chat, *settings], cancels=[asked], **answering)
    examples = [one.select(handlers.example, [chat, *settings], **answering) for one in conversations]
    # A cancelled generator is closed, which ends the computation.
    ending: dict[str, Any] = {
        "outputs": shown,
        "cancels": [asked, again, *examples],
        "show_progress": "hidden",
        "api_visibility": "private",
    }
    for name, handler in (("stop", handlers.stopped), ("undo", handlers.undo), ("restart", handlers.restart)):
        buttons[name].click(handler, [chat], **ending)


def _connect_saving(handlers: Handlers, chat: gr.State, buttons: dict[str, gr.Button]) -> None:
    text = gr.Textbox(visible="hidden", elem_id="saved")
    for name, handler, kind, file in (
        ("json", handlers.json, "application/json", "conversation.json"),
        ("markdown", handlers.markdown, "text/markdown", "conversation.md"),
    ):
        made = buttons[name].click(handler, [chat], text, show_progress="hidden", api_visibility="private")
        made.then(None, [text], None, js=SAVE % (kind, file), api_visibility="private")


def _api(handlers: Handlers, model: LoadedModel, controls: list[Any], visitors: int) -> None:
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
            concurrency_limit=visitors,
            concurrency_id="model",
        )

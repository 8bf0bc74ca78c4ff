"""The chat template in Jinja beside the template that training uses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from minigpt4.common.types import IMAGE_TOKEN
from minigpt4.conversation.dialogue import Dialogue, Turn
from minigpt4.conversation.template import IMAGE_TAG, TEMPLATES, Template
from minigpt4.export.processor import chat_template

OWN = Template(
    "<|user|>\n{}<|end|>\n<|assistant|>\n",
    "<|end|>",
    first_pattern="<|begin|><|user|>\n{}<|end|>\n<|assistant|>\n",
    system_pattern='<|begin|><|system|>\n"{system}" \\ {%{system}%}<|end|>\n<|user|>\n{}<|end|>\n<|assistant|>\n',
    separator="<|end|>\n",
)
ALL = {**TEMPLATES, "own": OWN, "with a system message": replace(OWN, system="Be 'brief'.")}
TURNS = [Turn("What is it?", 1, f"A dog {IMAGE_TOKEN}."), Turn("And here?", 2, "A cat.")]


def written(template: Template, messages: list[dict[str, Any]], *, bos: bool = True, asks: bool = True) -> str:
    text: str = render_jinja_template(
        [messages], chat_template=chat_template(template, bos=bos), add_generation_prompt=asks, bos_token="<s>"
    )[0][0]
    return text


def user(*parts: str) -> dict[str, Any]:
    """A message of texts and images, of which `IMAGE_TAG` stands for each."""
    content = [{"type": "image"} if part == IMAGE_TAG else {"type": "text", "text": part} for part in parts]
    return {"role": "user", "content": content}


def messages_of(turns: list[Turn], question: str, images: int) -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = []
    for turn in turns:
        said += [user(*[IMAGE_TAG] * turn.images, turn.question), {"role": "assistant", "content": turn.answer}]
    return [*said, user(*[IMAGE_TAG] * images, question)]


@pytest.mark.parametrize("name", ALL)
def test_prompts_are_those_of_chat(name: str) -> None:
    template = ALL[name]
    for turns in [TURNS[:0]] if template.in_pieces else [TURNS[:0], TURNS[:1], TURNS]:
        for images in (0, 1, 2):
            expected = Dialogue(template, turns).prompt("Why {so}?\n", images)
            assert written(template, messages_of(turns, "Why {so}?\n", images)) == f"<s>{expected}"
    placed = f"Left {IMAGE_TAG}, right?"
    assert written(template, [user(IMAGE_TAG, placed)]) == f"<s>{Dialogue(template).prompt(placed, 1)}"
    asked = Dialogue(replace(template, system="Say {} little.")).prompt("Why?", 1)
    system = {"role": "system", "content": "Say {} little."}
    assert written(template, [system, user(IMAGE_TAG, "Why?")], bos=False) == asked


def test_an_image_is_apart_from_text_beside_it() -> None:
    template = Template("{}", "</s>")
    assert written(template, [user("Compare", IMAGE_TAG, "with", IMAGE_TAG, IMAGE_TAG)], bos=False) == (
        f"Compare {IMAGE_TAG} with {IMAGE_TAG} {IMAGE_TAG}"
    )
    assert written(template, [{"role": "user", "content": "plain"}], bos=False) == "plain"


def test_a_conversation_that_is_over_ends_as_it_was_trained() -> None:
    over = [user("Why?"), {"role": "assistant", "content": "So."}]
    assert written(TEMPLATES["vicuna0"], over, asks=False) == "<s>###Human: Why? ###Assistant: So.###"
    assert written(TEMPLATES["vicuna0"], over) == "<s>###Human: Why? ###Assistant: So."


@pytest.mark.parametrize(
    ("name", "messages", "message"),
    [
        ("minigpt_v2", messages_of(TURNS[:1], "Why?", 0), "tokenises each turn alone"),
        ("vicuna0", [user("a"), user("b")], "take turns"),
        ("vicuna0", [{"role": "assistant", "content": "a"}], "take turns"),
        ("vicuna0", [user("a"), {"role": "system", "content": "b"}], "take turns"),
        ("vicuna0", [{"role": "tool", "content": "a"}], "take turns"),
        ("vicuna0", [{"role": "user", "content": [{"type": "video"}]}], "types text and image, not video"),
    ],
)
def test_conversations_that_cannot_be_written(name: str, messages: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        written(TEMPLATES[name], messages)

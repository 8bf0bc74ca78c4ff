from __future__ import annotations

import pytest

from minigpt4.common.registry import processors
from minigpt4.processors.text import BlipCaption, PlainText


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("A Dog.", "a dog"),
        ('Two  "men" (one old) run!', "two men one old run"),
        ("it's a T-shirt, isn't it?", "it's a t-shirt, isn't it?"),
        ("  spaces \n", "spaces"),
    ],
)
def test_blip_cleaning(caption: str, cleaned: str) -> None:
    assert BlipCaption()(caption) == cleaned


def test_blip_keeps_fifty_words_unless_told() -> None:
    assert len(BlipCaption()("w " * 60).split()) == 50
    assert BlipCaption(max_words=2)("One two three") == "one two"
    assert len(BlipCaption(max_words=None)("w " * 60).split()) == 50


def test_plain_text_changes_white_space_only() -> None:
    text = 'A "Dog" &amp; a cat.\n Isn\'t it?\u2028Yes.'
    assert PlainText()(text) == 'A "Dog" &amp; a cat. Isn\'t it? Yes.'
    assert len(PlainText()("w " * 300).split()) == 300
    assert PlainText(max_words=2)("one two three") == "one two"


@pytest.mark.parametrize("name", ["blip_caption", "plain_text"])
def test_the_prompt_stands_in_front(name: str) -> None:
    assert processors.get(name)(prompt="a photo of ")("x") == "a photo of x"

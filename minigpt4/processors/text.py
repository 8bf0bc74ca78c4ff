"""Captions -> the text to train on."""

from __future__ import annotations

import re

from minigpt4.common.registry import processors

_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")
_SPACES = re.compile(r"\s{2,}")


@processors.register("blip_caption")
class BlipCaption:
    """BLIP's cleaning: lower case, some punctuation to spaces, a limited number of words.

    Args:
        prompt: text in front of the caption.
        max_words: words that are kept; None: 50.
    """

    def __init__(self, prompt: str = "", max_words: int | None = 50) -> None:
        self.prompt = prompt
        self.max_words = 50 if max_words is None else max_words

    def __call__(self, caption: str) -> str:
        """The prompt and the cleaned caption."""
        text = _SPACES.sub(" ", _PUNCTUATION.sub(" ", caption.lower()))
        words = text.rstrip("\n").strip(" ").split(" ")
        return self.prompt + " ".join(words[: self.max_words])


@processors.register("plain_text")
class PlainText:
    """The caption with white space collapsed; upper case and punctuation are trained on too.

    Args:
        prompt: text in front of the caption.
        max_words: words that are kept; None: all.
    """

    def __init__(self, prompt: str = "", max_words: int | None = None) -> None:
        self.prompt = prompt
        self.max_words = max_words

    def __call__(self, caption: str) -> str:
        """The prompt and the caption."""
        return self.prompt + " ".join(caption.split()[: self.max_words])

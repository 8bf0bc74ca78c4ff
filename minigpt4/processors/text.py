"""Captions -> the text to learn."""

from __future__ import annotations

import re

from minigpt4.common.registry import processors

_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")
_SPACES = re.compile(r"\s{2,}")


@processors.register("blip_caption")
class BlipCaption:
    """BLIP's cleaning: lower case, some punctuation to spaces, at most so many words.

    Args:
        prompt: Put in front.
        max_words: Words kept.
    """

    def __init__(self, prompt: str = "", max_words: int | None = 50) -> None:
        self.prompt = prompt
        self.max_words = 50 if max_words is None else max_words

    def __call__(self, caption: str) -> str:
        """The cleaned caption behind the prompt."""
        text = _SPACES.sub(" ", _PUNCTUATION.sub(" ", caption.lower()))
        words = text.rstrip("\n").strip(" ").split(" ")
        return self.prompt + " ".join(words[: self.max_words])


@processors.register("plain_text")
class PlainText:
    """The caption as it stands, with white space folded, so that upper case and punctuation are learnt too.

    Args:
        prompt: Put in front.
        max_words: Words kept; None: all.
    """

    def __init__(self, prompt: str = "", max_words: int | None = None) -> None:
        self.prompt = prompt
        self.max_words = max_words

    def __call__(self, caption: str) -> str:
        """The caption behind the prompt."""
        return self.prompt + " ".join(caption.split()[: self.max_words])

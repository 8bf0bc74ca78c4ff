"""A tokenizer of one id a byte, so that expected ids can be read off the text."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

FIRST = 3


class AsciiTokenizer:
    """Ids of bytes, behind padding, BOS and EOS."""

    bos_id: int | None = 1
    eos_id: int | None = 2
    vocab_size = FIRST + 256
    special_names = MappingProxyType({1: "[BOS]", 2: "[EOS]"})

    def encode(self, text: str) -> list[int]:
        return [FIRST + byte for byte in text.encode()]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i - FIRST for i in ids if i >= FIRST).decode(errors="replace")

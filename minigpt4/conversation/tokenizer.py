"""Text -> token ids, as the published weights were trained.

A LLaMA folder's `tokenizer.model` is read by sentencepiece itself. transformers 5 converts it to a tokenizer that drops
the word mark in front of text that begins with a space and after `<s>` and `</s>`, and each such token shifts
everything behind it. The tokenizers of all other language models come from transformers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from minigpt4.common.errors import ConfigError
from minigpt4.common.files import read_json


class Tokenizer(Protocol):
    """Encodes prompts and answers a segment at a time; special tokens are never added."""

    bos_id: int | None
    eos_id: int | None
    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Ids of one segment of text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, without special tokens."""
        ...


class SentencePieceTokenizer:
    """LLaMA's tokenizer, behaving as it did when LLaMA and Vicuna were trained.

    Special tokens written in a text are recognised, and each segment between them is encoded alone, so that it begins
    with its own word mark.

    Args:
        model_file: `tokenizer.model`.
        added_tokens: further tokens from `added_tokens.json`, text -> id.

    Raises:
        ConfigError: The file is no sentencepiece model.
    """

    def __init__(self, model_file: Path, added_tokens: dict[str, int] | None = None) -> None:
        import sentencepiece

        self._pieces = sentencepiece.SentencePieceProcessor()
        try:
            self._pieces.load(str(model_file))
        except (RuntimeError, OSError) as error:
            raise ConfigError(
                f"{model_file} is not a sentencepiece model ({error}); copy the language model's tokenizer.model again"
            ) from error
        self.bos_id: int | None = self._pieces.bos_id() if self._pieces.bos_id() >= 0 else None
        self.eos_id: int | None = self._pieces.eos_id() if self._pieces.eos_id() >= 0 else None
        ids = [i for i in (self._pieces.unk_id(), self.bos_id, self.eos_id) if i is not None and i >= 0]
        self._special = {self._pieces.id_to_piece(i): i for i in ids} | (added_tokens or {})
        self._special_ids = frozenset(self._special.values())
        self._split = re.compile("(" + "|".join(map(re.escape, sorted(self._special, key=len, reverse=True))) + ")")
        self.vocab_size = max(self._pieces.get_piece_size(), 1 + max(self._special_ids, default=-1))

    def encode(self, text: str) -> list[int]:
        """Ids of one segment of text."""
        ids: list[int] = []
        for part in self._split.split(text):
            if part in self._special:
                ids.append(self._special[part])
            elif part:
                ids.extend(self._pieces.encode(part))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, without special tokens."""
        text: str = self._pieces.decode([i for i in ids if i not in self._special_ids])
        return text


class TransformersTokenizer:
    """The tokenizer of any other language model.

    Args:
        folder: folder of the language model in Hugging Face's layout.

    Raises:
        ConfigError: The folder holds no usable tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise ConfigError(f"model.llama_model: no usable tokenizer in {folder}: {error}") from error
        self.bos_id: int | None = self._tokenizer.bos_token_id
        self.eos_id: int | None = self._tokenizer.eos_token_id
        self.vocab_size = len(self._tokenizer)

    def encode(self, text: str) -> list[int]:
        """Ids of one segment of text."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, without special tokens."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of the language model in `folder`.

    Raises:
        ConfigError: The folder holds no usable tokenizer.
        DataError: One of its JSON files is broken.
    """
    model_file = folder / "tokenizer.model"
    config_file = folder / "config.json"
    model_type = read_json(config_file).get("model_type") if config_file.is_file() else None
    if model_file.is_file() and model_type == "llama":
        added = folder / "added_tokens.json"
        return SentencePieceTokenizer(model_file, read_json(added) if added.is_file() else None)
    return TransformersTokenizer(folder)

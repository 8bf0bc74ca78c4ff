"""Text -> token ids, as the published weights were trained.

A LLaMA folder's `tokenizer.model` is read by sentencepiece itself. transformers 5 converts it to a tokenizer that drops
the word mark in front of text that begins with a space and after `<s>` and `</s>`, and each such token shifts
everything behind it. The tokenizers of all other language models come from transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from minigpt4.common.errors import ConfigError, one_line
from minigpt4.common.files import read_json

TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")
"""Files that most language models' tokenizers are read from, one of them or both."""
REPLACEMENT_CHARACTER = "\ufffd"
"""What bytes that are not valid UTF-8 are decoded to, such as those of an incomplete character."""
_BROKEN_BYTES = re.compile(f"{REPLACEMENT_CHARACTER}+")
PROBE = "a dog and two cats on the grass"
"""Text that every tokenizer of a language model gives back after encoding it."""
MIN_USED = 0.5
"""Least share of a language model's embeddings that its tokenizer has tokens for: some pad them, by a few per cent."""


class Tokenizer(Protocol):
    """Encodes prompts and answers a segment at a time; special tokens are never added.

    Attributes:
        bos_id: token of the beginning of a sequence; None: there is none.
        eos_id: token of its end; None: there is none.
        vocab_size: number of ids.
        special_names: special tokens, which `decode` leaves out, id -> text for display.
    """

    bos_id: int | None
    eos_id: int | None
    vocab_size: int
    special_names: Mapping[int, str]

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
        stripping: special tokens that swallow the spaces in front of them and behind them, text -> (front, behind).

    Attributes:
        pieces: sentencepiece's own tokenizer.
        special: tokens that are recognised in a text, text -> id.
        stripping: as given.

    Raises:
        ConfigError: The file is no sentencepiece model.
    """

    def __init__(
        self,
        model_file: Path,
        added_tokens: Mapping[str, int] | None = None,
        stripping: Mapping[str, tuple[bool, bool]] | None = None,
    ) -> None:
        import sentencepiece

        self.pieces = sentencepiece.SentencePieceProcessor()
        try:
            self.pieces.load(str(model_file))
        except (RuntimeError, OSError) as error:
            raise ConfigError(
                f"{model_file} is not a sentencepiece model ({error}); copy the language model's tokenizer.model again"
            ) from error
        self.bos_id: int | None = self.pieces.bos_id() if self.pieces.bos_id() >= 0 else None
        self.eos_id: int | None = self.pieces.eos_id() if self.pieces.eos_id() >= 0 else None
        ids = [i for i in (self.pieces.unk_id(), self.bos_id, self.eos_id) if i is not None and i >= 0]
        self.special = {self.pieces.id_to_piece(i): i for i in ids} | dict(added_tokens or {})
        self.stripping = dict(stripping or {})
        self._special_ids = frozenset(self.special.values())
        self.special_names: Mapping[int, str] = {
            i: "[BOS]" if i == self.bos_id else text for text, i in self.special.items()
        }
        self._split = re.compile("(" + "|".join(map(re.escape, sorted(self.special, key=len, reverse=True))) + ")")
        self._num_pieces: int = self.pieces.get_piece_size()
        self.vocab_size = max(self._num_pieces, 1 + max(self._special_ids, default=-1))

    def encode(self, text: str) -> list[int]:
        """Ids of one segment of text."""
        ids: list[int] = []
        parts = self._split.split(text)
        for place in range(1, len(parts), 2):  # the special tokens
            front, behind = self.stripping.get(parts[place], (False, False))
            if front:
                parts[place - 1] = parts[place - 1].rstrip()
            if behind:
                parts[place + 1] = parts[place + 1].lstrip()
        for part in parts:
            if part in self.special:
                ids.append(self.special[part])
            elif part:
                ids.extend(self.pieces.encode(part))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, without special tokens and those that a language model embeds beyond its tokenizer's.

        A run of bytes that are not valid UTF-8 becomes one �; sentencepiece writes one for each byte, which the
        decoders of a `tokenizer.json` cannot reproduce.
        """
        text: str = self.pieces.decode([i for i in ids if i < self._num_pieces and i not in self._special_ids])
        return _BROKEN_BYTES.sub(REPLACEMENT_CHARACTER, text)


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
        except Exception as error:  # damaged files can raise anything
            raise ConfigError(
                f"model.llama_model: no usable tokenizer in {folder} ({one_line(error)}): {_advice(folder)}"
            ) from error
        self.bos_id: int | None = self._tokenizer.bos_token_id
        self.eos_id: int | None = self._tokenizer.eos_token_id
        self.vocab_size = len(self._tokenizer)
        added = self._tokenizer.added_tokens_decoder.items()
        self.special_names: Mapping[int, str] = {i: token.content for i, token in added if token.special}

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
        ConfigError: The folder holds no usable tokenizer, or one that loses text: transformers makes up a tokenizer
            where files are missing.
        DataError: One of its JSON files is broken.
    """
    config_file = folder / "config.json"
    model_type = _read_object(config_file).get("model_type")
    if config_file.is_file() and not isinstance(model_type, str):
        raise ConfigError(
            f"model.llama_model: {config_file} has no model_type, so it describes no language model; copy it again"
        )
    model_file = folder / "tokenizer.model"
    tokenizer: Tokenizer
    if model_file.is_file() and model_type == "llama":
        added = _read_object(folder / "added_tokens.json")
        wrong = [text for text, number in added.items() if not text or type(number) is not int or number < 0]
        if wrong:
            raise ConfigError(f"{folder / 'added_tokens.json'}: {wrong[0]!r} should be a text with an id")
        tokenizer = SentencePieceTokenizer(model_file, added, _stripping(folder, added))
    else:
        tokenizer = TransformersTokenizer(folder)
    decoded = tokenizer.decode(tokenizer.encode(PROBE))
    if "".join(decoded.split()).casefold() != "".join(PROBE.split()):
        raise ConfigError(
            f"model.llama_model: the tokenizer in {folder} turns {PROBE!r} into {decoded!r}, so it is not the language "
            f"model's: {_advice(folder)}"
        )
    return tokenizer


def check_vocabulary(tokenizer: Tokenizer, num_embeddings: int, folder: Path) -> None:
    """Refuse a tokenizer whose size is not the language model's.

    Args:
        tokenizer: tokenizer of the language model.
        num_embeddings: tokens that the language model embeds.
        folder: folder that both were loaded from, for messages.

    Raises:
        ConfigError: Their sizes do not fit, or a special token has no embedding.
    """
    special = [i for i in (tokenizer.bos_id, tokenizer.eos_id) if i is not None and not 0 <= i < num_embeddings]
    if special or not MIN_USED * num_embeddings <= tokenizer.vocab_size <= num_embeddings:
        found = f"the special token {special[0]}" if special else f"{tokenizer.vocab_size} tokens"
        raise ConfigError(
            f"model.llama_model: the tokenizer in {folder} has {found}, the language model embeds {num_embeddings}; "
            f"they do not belong together: {_advice(folder)}"
        )


def _advice(folder: Path) -> str:
    """What to do about a folder without the language model's own tokenizer, naming the files that are missing."""
    missing = [name for name in TOKENIZER_FILES if not (folder / name).is_file()]
    lacks = f"the folder has no {' and no '.join(missing)}; " if missing else ""
    return f"{lacks}copy the language model's own {' or '.join(missing or TOKENIZER_FILES)} into it"


def _read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file of the language model; empty where there is no such file."""
    content = read_json(file) if file.is_file() else {}
    if not isinstance(content, dict):
        raise ConfigError(f"{file} should hold a JSON object, not a {type(content).__name__}; copy it again")
    return content


def _stripping(folder: Path, added: Mapping[str, int]) -> dict[str, tuple[bool, bool]]:
    """The special tokens that swallow spaces: those described by a plain text only, as in the older transformers."""
    values = _read_object(folder / "special_tokens_map.json").values()
    special = [token for value in values for token in (value if isinstance(value, list) else [value])]
    plain = [*added, *(token for token in special if isinstance(token, str))]
    described = [token for token in special if isinstance(token, dict)]
    return dict.fromkeys(plain, (True, True)) | {
        str(token.get("content")): (bool(token.get("lstrip")), bool(token.get("rstrip"))) for token in described
    }

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest

from minigpt4.common.errors import ConfigError
from minigpt4.conversation.tokenizer import SentencePieceTokenizer, load_tokenizer

LLAMA = Path(__file__).resolve().parent.parent / "fixtures" / "parity_a" / "llama"


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceTokenizer:
    loaded = load_tokenizer(LLAMA)
    assert isinstance(loaded, SentencePieceTokenizer)
    return loaded


def test_special_tokens_in_a_text_are_recognised(tokenizer: SentencePieceTokenizer) -> None:
    ids = tokenizer.encode("a dog</s>a dog")
    assert ids.count(tokenizer.eos_id) == 1
    # Each stretch begins with its own word mark.
    assert ids == [*tokenizer.encode("a dog"), tokenizer.eos_id, *tokenizer.encode("a dog")]


def test_nothing_is_added_and_special_tokens_are_not_decoded(tokenizer: SentencePieceTokenizer) -> None:
    ids = tokenizer.encode("a dog")
    assert tokenizer.bos_id not in ids and tokenizer.eos_id not in ids
    assert tokenizer.decode([tokenizer.bos_id or 0, *ids, tokenizer.eos_id or 0]) == "a dog"


def test_added_tokens_have_ids_of_their_own(tmp_path: Path, tokenizer: SentencePieceTokenizer) -> None:
    shutil.copytree(LLAMA, tmp_path / "llama")
    (tmp_path / "llama" / "added_tokens.json").write_text(json.dumps({"<pad>": tokenizer.vocab_size}))
    larger = load_tokenizer(tmp_path / "llama")
    assert larger.vocab_size == tokenizer.vocab_size + 1
    assert larger.encode("<pad>") == [tokenizer.vocab_size]


def test_it_travels_to_a_worker_process(tokenizer: SentencePieceTokenizer) -> None:
    copied = pickle.loads(pickle.dumps(tokenizer))
    assert copied.encode("</s> a dog") == tokenizer.encode("</s> a dog")


def test_a_broken_model_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(ConfigError, match=r"tokenizer\.model is not a sentencepiece model"):
        load_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.llama_model: no usable tokenizer"):
        load_tokenizer(tmp_path)

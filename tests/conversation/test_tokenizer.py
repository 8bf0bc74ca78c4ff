from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from minigpt4.common.errors import ConfigError
from minigpt4.conversation.tokenizer import (
    SentencePieceTokenizer,
    Tokenizer,
    TransformersTokenizer,
    check_vocabulary,
    load_tokenizer,
)

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


def test_broken_bytes_are_one_sign_and_lose_nothing_beside_them(tokenizer: SentencePieceTokenizer) -> None:
    ids = [tokenizer.pieces.piece_to_id(f"<0x{value:02X}>") for value in "a🙂🙂".encode()]
    assert [tokenizer.decode(ids[: 5 + more]) for more in range(5)] == ["a🙂", "a🙂�", "a🙂�", "a🙂�", "a🙂🙂"]


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


def llama_with(folder: Path, name: str, content: object) -> Tokenizer:
    """The tokenizer of a copy of the LLaMA folder with another file."""
    shutil.copytree(LLAMA, folder, dirs_exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return load_tokenizer(folder)


PLAIN = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def described(**strips: bool) -> dict[str, object]:
    return {key: {"content": text, "lstrip": False, "rstrip": False} | strips for key, text in PLAIN.items()}


@pytest.mark.parametrize(
    ("specials", "between"),
    [
        ({}, ("a ", " b ", " c")),
        (described(), ("a ", " b ", " c")),
        (PLAIN, ("a", "b", "c")),
        (described(lstrip=True), ("a", " b", " c")),
        (described(rstrip=True), ("a ", "b ", "c")),
        (PLAIN | {"pad_token": described()["unk_token"]}, ("a", "b", "c")),
        (described() | {"additional_special_tokens": ["</s>"]}, ("a ", " b ", " c")),
    ],
)
def test_special_tokens_given_as_plain_text_swallow_spaces(
    tmp_path: Path, tokenizer: SentencePieceTokenizer, specials: dict[str, object], between: tuple[str, str, str]
) -> None:
    found = llama_with(tmp_path, "special_tokens_map.json", specials)
    first, second, third = map(tokenizer.encode, between)
    assert found.encode("a <s> b </s> c") == [*first, 1, *second, 2, *third]
    assert found.encode(" a  b ") == tokenizer.encode(" a  b ")


def test_added_tokens_swallow_spaces_unless_described(tmp_path: Path, tokenizer: SentencePieceTokenizer) -> None:
    pad = tokenizer.vocab_size
    folder = shutil.copytree(LLAMA, tmp_path / "llama")
    (folder / "added_tokens.json").write_text(json.dumps({"<pad>": pad}))
    added = load_tokenizer(folder)
    assert added.encode("a <pad> b") == [*tokenizer.encode("a"), pad, *tokenizer.encode("b")]
    assert added.encode("a <s> b") == tokenizer.encode("a <s> b")
    described_pad = {"pad_token": {"content": "<pad>", "lstrip": False, "rstrip": False}}
    (folder / "special_tokens_map.json").write_text(json.dumps(described() | described_pad))
    assert load_tokenizer(folder).encode("a <pad> b") == [*tokenizer.encode("a "), pad, *tokenizer.encode(" b")]


def test_ids_beyond_the_tokenizer_are_decoded_as_nothing(tokenizer: SentencePieceTokenizer) -> None:
    ids = tokenizer.encode("a dog")
    assert tokenizer.decode([*ids, tokenizer.vocab_size, tokenizer.vocab_size + 200]) == "a dog"


def test_ids_beyond_a_tokenizer_of_transformers_are_decoded_as_nothing(tmp_path: Path) -> None:
    tokenizer = TransformersTokenizer(byte_folder(tmp_path))
    assert tokenizer.decode([*tokenizer.encode("a dog"), 99_999]) == "a dog"


def byte_folder(folder: Path) -> Path:
    """A tokenizer of transformers, of single bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = RustTokenizer(models.BPE(vocab={token: number for number, token in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(folder)
    return folder


class TestFit:
    def test_a_padded_vocabulary_fits(self, tmp_path: Path, tokenizer: SentencePieceTokenizer) -> None:
        check_vocabulary(tokenizer, tokenizer.vocab_size + 64, tmp_path)
        with pytest.raises(ConfigError):  # one row too few
            check_vocabulary(tokenizer, tokenizer.vocab_size - 1, tmp_path)

    @pytest.mark.parametrize("embedded", [799, 1601, 3])
    def test_sizes_that_do_not_fit(self, tokenizer: SentencePieceTokenizer, embedded: int) -> None:
        with pytest.raises(ConfigError, match=f"has 800 tokens, the language model embeds {embedded}"):
            check_vocabulary(tokenizer, embedded, LLAMA)

    def test_a_special_token_without_embedding(self, tmp_path: Path) -> None:
        tokenizer = TransformersTokenizer(byte_folder(tmp_path))
        tokenizer.eos_id = 900
        with pytest.raises(ConfigError, match="has the special token 900, the language model embeds 300"):
            check_vocabulary(tokenizer, 300, tmp_path)

    def test_text_that_does_not_survive(self, tmp_path: Path) -> None:
        words = RustTokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "[UNK]": 2}, unk_token="[UNK]"))
        PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>").save_pretrained(tmp_path)
        (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
        with pytest.raises(ConfigError, match=r"turns 'a dog .*the folder has no tokenizer\.model; copy"):
            load_tokenizer(tmp_path)

    def test_a_folder_without_tokenizer_files(self, tmp_path: Path) -> None:
        shutil.copytree(LLAMA, tmp_path / "llama", ignore=shutil.ignore_patterns("tokenizer.model"))
        with pytest.raises(ConfigError, match=r"the folder has no tokenizer\.model and no tokenizer\.json"):
            load_tokenizer(tmp_path / "llama")


@pytest.mark.parametrize("content", [[1], {"<pad>": "x"}, {"": 800}, {"<pad>": -1}, {"<pad>": True}])
def test_damaged_added_tokens_name_the_file(tmp_path: Path, content: object) -> None:
    with pytest.raises(ConfigError, match=r"added_tokens\.json"):
        llama_with(tmp_path, "added_tokens.json", content)


@pytest.mark.parametrize("content", [[1], {"bos_token": 3}, {"bos_token": {"lstrip": True}}, {"x": [None]}])
def test_a_damaged_map_of_special_tokens_raises_no_other_error(
    tmp_path: Path, tokenizer: SentencePieceTokenizer, content: object
) -> None:
    try:
        found = llama_with(tmp_path, "special_tokens_map.json", content)
    except ConfigError as error:
        assert "special_tokens_map.json" in str(error)
    else:
        assert found.encode("a <s> b") == tokenizer.encode("a <s> b")

"""A tokenizer.json that gives sentencepiece's ids."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from minigpt4.common.errors import ExportError
from minigpt4.common.files import asset
from minigpt4.conversation.tokenizer import SentencePieceTokenizer, load_tokenizer
from minigpt4.export import tokenizer as tokenizer_module
from minigpt4.export.tokenizer import AWKWARD, differences, ending_tokens, fast_tokenizer

FOLDERS = (Path(asset("tiny/llama")), Path(__file__).parent.parent / "fixtures" / "parity_a" / "llama")


def random_texts(count: int) -> list[str]:
    """Awkward texts joined by nothing, which puts special tokens and spaces into any neighbourhood."""
    draw = random.Random("texts")
    return ["".join(draw.choices(AWKWARD, k=draw.randint(2, 5))) for _ in range(count)]


@pytest.mark.parametrize("folder", FOLDERS, ids=["user-defined pieces", "plain"])
def test_ids_and_texts_are_those_of_sentencepiece(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    ours = load_tokenizer(folder)
    fast_tokenizer(folder, ours).save_pretrained(tmp_path)
    theirs: Any = AutoTokenizer.from_pretrained(tmp_path)
    texts = [*AWKWARD, *random_texts(300)]
    assert differences(ours, theirs, texts) == []
    for text in texts:
        ids = ours.encode(text)
        assert theirs.decode(ids, skip_special_tokens=True).strip() == ours.decode(ids).strip()
    assert theirs.encode("a b") == [ours.bos_id, *ours.encode("a b")]
    assert (theirs.padding_side, theirs.pad_token_id) == ("left", 0)
    assert theirs.image_token_id == ours.vocab_size


@pytest.mark.parametrize("folder", FOLDERS, ids=["user-defined pieces", "plain"])
def test_bytes_that_are_no_characters_are_decoded_as_here(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    ours = load_tokenizer(folder)
    assert isinstance(ours, SentencePieceTokenizer)
    fast_tokenizer(folder, ours).save_pretrained(tmp_path)
    theirs: Any = AutoTokenizer.from_pretrained(tmp_path)
    number = ours.pieces.piece_to_id
    byte = [number(f"<0x{value:02X}>") for value in range(256)]
    cut = [byte[value] for value in "🙂é▁🙂".encode()[:-1]]
    assert theirs.decode(cut) == ours.decode(cut) == "🙂é▁�"
    draw = random.Random("bytes")
    for _ in range(2000):
        whole = "".join(draw.choices("é🙂€Āńaz 北\n<0x41>�▁", k=6)).encode()
        ids = [byte[value] for value in whole[: draw.randint(1, len(whole))]]
        ids = [each if draw.random() < 0.9 else draw.randrange(ours.pieces.get_piece_size()) for each in ids]
        assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids), ids


def test_added_tokens_keep_their_ids_and_swallow_spaces(tmp_path: Path) -> None:
    shutil.copy(FOLDERS[1] / "tokenizer.model", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[PAD]": 801, "<sep>": 803}))
    described = {"content": "<sep>", "lstrip": False, "rstrip": False}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"sep_token": described}))
    ours = load_tokenizer(tmp_path)
    theirs = fast_tokenizer(tmp_path, ours)
    assert ours.encode("a [PAD] b") == ours.encode("a[PAD]b") != ours.encode("a <sep> b")
    texts = ["a [PAD] b", "a[PAD]b", "[PAD][PAD]", "a <sep> b", "<sep>", " [PAD]"]
    assert differences(ours, theirs, texts) == []
    assert (theirs.encode("<sep>", add_special_tokens=False), theirs.image_token_id) == ([803], 804)


def test_a_conversion_that_disagrees_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = load_tokenizer(FOLDERS[1])
    monkeypatch.setattr(tokenizer_module, "_merges", lambda _: [])
    with pytest.raises(ExportError, match=r"no tokenizer\.json that agrees with it: other ids for"):
        fast_tokenizer(FOLDERS[1], ours)


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("trainer_spec", "model_type", 1, "is no BPE"),
        ("normalizer_spec", "remove_extra_whitespaces", True, "removes spaces, which is not converted"),
    ],
)
def test_other_kinds_of_sentencepiece_are_refused(
    part: str, name: str, value: Any, message: str, tmp_path: Path
) -> None:
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((FOLDERS[1] / "tokenizer.model").read_bytes())
    setattr(getattr(proto, part), name, value)
    (tmp_path / "tokenizer.model").write_bytes(proto.SerializeToString())
    with pytest.raises(ExportError, match=message):
        fast_tokenizer(tmp_path, SentencePieceTokenizer(tmp_path / "tokenizer.model"))


def test_answers_end_at_tokens_that_hold_their_end() -> None:
    ours = load_tokenizer(FOLDERS[0])
    theirs = fast_tokenizer(FOLDERS[0], ours)
    assert ending_tokens(theirs, [2], "###") == [2, *(i for i in range(3, 736) if "###" in ours.decode([i]))]
    assert len(ending_tokens(theirs, [2], "###")) > 1
    assert ending_tokens(theirs, [2], "</s>") == [2] == ending_tokens(theirs, [2], "")

"""The language model's tokenizer as a `tokenizer.json` that gives the same ids, with a token for images.

transformers' own conversion of a LLaMA `tokenizer.model` loses word marks (`conversation.tokenizer` says where). What
agrees with sentencepiece encodes each stretch between special tokens alone: special tokens are cut out of the raw text,
and each rest gets a word mark of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minigpt4.common.errors import ExportError, first_few
from minigpt4.common.types import IMAGE_TOKEN
from minigpt4.conversation.tokenizer import REPLACEMENT_CHARACTER, SentencePieceTokenizer, Tokenizer

WORD_MARK = "▁"
"""What sentencepiece writes for a space."""
_NO_BYTE = "\U0010ffff"
"""Marks tokens that are not bytes while they are decoded; a noncharacter of Unicode, which no text contains."""
_ADDED: dict[str, Any] = {"extra_special_tokens": {"image_token": IMAGE_TOKEN}, "padding_side": "left"}
"""What both kinds of tokenizers are made with; what is set later is not saved."""
AWKWARD = (
    "",
    " ",
    "   ",
    " leading",
    "trailing ",
    "two  spaces and   three",
    "a\nb\n\nc",
    "\n",
    "tab\there",
    "carriage\r\nreturn",
    "###",
    "x###y",
    "### ###",
    "###Human: <Img></Img> What? ###Assistant: ",
    "[INST] Why? [/INST]",
    "<s>",
    "</s>",
    "a</s>b",
    "a </s> b",
    "</s><s>",
    "<s><s>[INST]",
    "<unk>",
    "<pad>",
    "<0x41>",
    "naïve café",
    "cafe\u0301",
    "北京 is a city",
    "ひらがな",
    "Здравствуйте",
    "مرحبا",
    "🙂 🏳️‍🌈",
    "1234567890",
    "3.14 and 1,000",
    "aaaaaaaaaaaaa",
    "▁already marked",
    "non\u00a0breaking",
    "zero\u200bwidth",
    "CamelCaseWords_and_snake_case",
    "http://example.org/a?b=c&d=%20",
    "{<12><34><56><78>}",
    "<Img>",
    "<img>",
    "A red circle is in the middle.",
)
"""Texts whose ids differ where a conversion is wrong."""


def fast_tokenizer(folder: Path, tokenizer: Tokenizer) -> Any:
    """The same tokenizer as transformers saves and loads it, with the special token `<ImageHere>`.

    Args:
        folder: folder of the language model.
        tokenizer: its tokenizer.

    Raises:
        ExportError: It cannot be written as a `tokenizer.json`, or that would give other ids.
    """
    if isinstance(tokenizer, SentencePieceTokenizer):
        converted = _from_sentencepiece(tokenizer)
    else:
        from transformers import AutoTokenizer

        converted = AutoTokenizer.from_pretrained(folder, **_ADDED)
        converted.chat_template = None  # the processor has it
    if converted.pad_token is None:
        converted.pad_token = converted.unk_token or converted.eos_token
    if wrong := differences(tokenizer, converted):
        raise ExportError(
            f"model.llama_model: the tokenizer in {folder} has no tokenizer.json that agrees with it: other ids for "
            f"{first_few(map(repr, wrong), 3)}"
        )
    return converted


def differences(tokenizer: Tokenizer, other: Any, texts: Sequence[str] = AWKWARD) -> list[str]:
    """The texts that another tokenizer, of transformers, encodes otherwise."""
    return [text for text in texts if tokenizer.encode(text) != other.encode(text, add_special_tokens=False)]


def ending_tokens(converted: Any, ends: Sequence[int], end: str) -> list[int]:
    """Tokens that end an answer of the export: those that end the model's, and every token that contains `end`.

    Args:
        converted: from `fast_tokenizer`.
        ends: the model's, as its generator has them.
        end: text that ends an answer; empty: none.
    """
    holding = sorted(number for text, number in converted.get_vocab().items() if end and end in text)
    return list(dict.fromkeys([*ends, *holding]))


def _from_sentencepiece(tokenizer: SentencePieceTokenizer) -> Any:
    """A sentencepiece model of type BPE as transformers' fast tokenizer.

    Raises:
        ExportError: It is of another type, or changes texts before it encodes them.
    """
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors
    from tokenizers import Tokenizer as Fast
    from transformers import PreTrainedTokenizerFast

    pieces = tokenizer.pieces
    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(pieces.serialized_model_proto())
    _check_convertible(proto)
    kinds = proto.SentencePiece
    vocabulary = {piece.piece: number for number, piece in enumerate(proto.pieces)} | tokenizer.special
    image_id = max(vocabulary.values()) + 1
    vocabulary[IMAGE_TOKEN] = image_id
    own = [piece.piece for piece in proto.pieces if piece.type == kinds.USER_DEFINED]
    fast = Fast(
        models.BPE(
            vocab=vocabulary,
            merges=_merges([(piece.piece, piece.score) for piece in proto.pieces if piece.type == kinds.NORMAL]),
            unk_token=pieces.id_to_piece(pieces.unk_id()),
            fuse_unk=True,
            byte_fallback=proto.trainer_spec.byte_fallback,
            ignore_merges=bool(own),  # those that the user defined come from no merge
        )
    )
    marked: list[Any] = [normalizers.Prepend(WORD_MARK)] if proto.normalizer_spec.add_dummy_prefix else []
    fast.normalizer = normalizers.Sequence([*marked, normalizers.Replace(" ", WORD_MARK)])
    if own:
        longest_first = "|".join(map(re.escape, sorted(own, key=len, reverse=True)))
        # Between two of them, the text "<0x41>" would be taken for the piece of that byte.
        bytes_apart = pre_tokenizers.Split(Regex(r"\A<(?=0x[0-9A-F]{2}>\z)"), behavior="isolated")
        fast.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(longest_first), behavior="isolated"), bytes_apart]
        )
    fast.decoder = _decoder(dummy_prefix=proto.normalizer_spec.add_dummy_prefix)
    added = []
    for text in [*tokenizer.special, IMAGE_TOKEN]:
        front, behind = tokenizer.stripping.get(text, (False, False))
        added.append(AddedToken(text, normalized=False, special=True, lstrip=front, rstrip=behind))
    fast.add_special_tokens(added)
    names = {
        f"{role}_token": pieces.id_to_piece(number)
        for role, number in (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id), ("unk", pieces.unk_id()))
        if number is not None
    }
    if tokenizer.bos_id is not None:
        fast.post_processor = processors.TemplateProcessing(
            single=f"{names['bos_token']} $A", special_tokens=[(names["bos_token"], tokenizer.bos_id)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **names,
        **_ADDED,
    )


def _decoder(dummy_prefix: bool) -> Any:
    """A decoder that decodes as `SentencePieceTokenizer`, also where generated bytes are not valid UTF-8.

    `decoders.ByteFallback` would lose the complete characters next to an incomplete one, as in an answer that is cut
    off within its second emoji. `decoders.ByteLevel` keeps them. It writes each byte as a character of its own alphabet
    and leaves a token with any other character as it is; so bytes are renamed, and all other tokens get `_NO_BYTE`.

    Args:
        dummy_prefix: whether the encoder adds a word mark in front of a text.
    """
    from tokenizers import Regex, decoders
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    renamed = (decoders.Replace(f"<0x{byte:02X}>", character) for byte, character in bytes_to_unicode().items())
    return decoders.Sequence(
        [
            decoders.Replace(Regex(r"\A(?!<0x[0-9A-F]{2}>\z)"), _NO_BYTE),
            *renamed,
            decoders.Replace(WORD_MARK, " "),
            decoders.ByteLevel(),
            *([decoders.Replace(Regex(rf"\A{_NO_BYTE} "), "")] if dummy_prefix else []),
            decoders.Replace(_NO_BYTE, ""),
            decoders.Replace(Regex(f"{REPLACEMENT_CHARACTER}+"), REPLACEMENT_CHARACTER),
        ]
    )


def _check_convertible(proto: Any) -> None:
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    if trainer.model_type != trainer.BPE:
        raise ExportError(
            "model.llama_model: its tokenizer.model is no BPE, the type that is converted; save the tokenizer as a "
            "tokenizer.json, and take tokenizer.model out of the folder"
        )
    changing = {
        "normalises texts": bool(normalizer.precompiled_charsmap),
        "removes spaces": normalizer.remove_extra_whitespaces,
        "leaves spaces": not normalizer.escape_whitespaces,
        "puts word marks behind words": trainer.treat_whitespace_as_suffix,
    }
    if found := [what for what, is_so in changing.items() if is_so]:
        raise ExportError(
            f"model.llama_model: its tokenizer.model {first_few(found)}, which is not converted; save the tokenizer as "
            "a tokenizer.json, and take tokenizer.model out of the folder"
        )


def _merges(pieces: Sequence[tuple[str, float]]) -> list[tuple[str, str]]:
    """Pairs of pieces in the order in which BPE joins them: those that make a piece of a higher score first.

    Args:
        pieces: (piece, score) of the normal pieces, in the order of their ids.
    """
    ids = {piece: number for number, (piece, _) in enumerate(pieces)}
    merges: list[tuple[str, str]] = []
    for piece, _ in sorted(pieces, key=lambda each: -each[1]):
        halves = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [pair for pair in halves if pair[0] in ids and pair[1] in ids]
        merges += sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    return merges

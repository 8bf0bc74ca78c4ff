"""The tokenizer of the tiny MiniGPT-v2: that of the tiny MiniGPT-4 with MiniGPT-v2's marks, one token each."""

from __future__ import annotations

import shutil
from pathlib import Path

from sentencepiece import sentencepiece_model_pb2

from minigpt4.common.boxes import TASKS

MARKS = ("[INST]", "[/INST]", *(f"[{task}]" for task in TASKS), "<p>", "</p>", "<delim>", "{<", "><", ">}")
"""A box is then four numbers between marks: 13 tokens instead of 19."""
_USER_DEFINED = 4  # sentencepiece's number of the type
_FILES = ("tokenizer_config.json", "special_tokens_map.json")


def extend_tokenizer(source: Path, folder: Path) -> Path:
    """Write the tokenizer in `source` with the marks behind its own tokens, which keep their ids.

    Args:
        source: folder of the tiny MiniGPT-4's language model.
        folder: folder to write into.

    Returns:
        The path of `tokenizer.model`.
    """
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((source / "tokenizer.model").read_bytes())
    for mark in MARKS:
        model.pieces.add(piece=mark, score=0.0, type=_USER_DEFINED)
    model.trainer_spec.vocab_size = len(model.pieces)
    model.trainer_spec.user_defined_symbols.extend(MARKS)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.model"
    path.write_bytes(model.SerializeToString())
    for name in _FILES:
        shutil.copyfile(source / name, folder / name)
    return path

"""A model as a folder that transformers runs without this package."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig as TheirGenerationConfig

from minigpt4.common.files import language_model_folder, writing
from minigpt4.common.schema import GenerationConfig, ModelConfig
from minigpt4.export.blip2 import blip2_config, blip2_tensors
from minigpt4.export.folder import check_space, write_weights
from minigpt4.export.processor import build_processor
from minigpt4.export.tokenizer import ending_tokens, fast_tokenizer
from minigpt4.models.loading import build_model

LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
"""Files of the language model's folder that go with its weights wherever these go."""


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        image_id: token of an image's queries.
        dtype: number format that `from_pretrained` loads it in.
        metadata: what a checkpoint of the model records.
        end: text that ends an answer; empty: none.
        leaves_end: whether programs that stop at tokens only leave that text in an answer.
        decoding: arguments of `generate` for the model's own generation settings; empty: greedy.
        licences: names of the language model's licence files.
    """

    image_id: int
    dtype: str
    metadata: dict[str, str]
    end: str
    leaves_end: bool
    decoding: dict[str, Any]
    licences: tuple[str, ...]


def write_model(cfg: ModelConfig, settings: GenerationConfig, folder: Path) -> Written:
    """Write weights, configuration, processor, tokenizer and generation settings.

    The weights are mapped from their files and written a shard at a time.

    Args:
        cfg: section `model`, which `check_exportable` accepted.
        settings: generation settings that become the folder's own.
        folder: empty folder.

    Raises:
        ExportError: The model is none that transformers has.
        DataError: The disk is too small, or the folder cannot be written.
        CheckpointError: Weights do not fit.
    """
    model = build_model(cfg, torch.device("cpu"), None, keep_llm_on_cpu=True)
    encoder, source = model.encoder, language_model_folder(cfg.llama_model, "model.llama_model")
    tokenizer = fast_tokenizer(source, encoder.tokenizer)
    image_id: int = tokenizer.image_token_id
    config = blip2_config(model, image_id)
    tensors = blip2_tensors(model, config)
    check_space(tensors, folder)
    has_bos = encoder.tokenizer.bos_id is not None
    assert model.visual_encoder is not None
    processor = build_processor(
        tokenizer, encoder.template, model.visual_encoder, encoder.num_image_tokens, bos=has_bos
    )
    ends = model.generator(settings).ends
    limits = _limits(settings, tokenizer, ending_tokens(tokenizer, ends, encoder.template.end))
    for name, value in limits.items():
        setattr(config.text_config, name, value)
    licences = sorted(file for pattern in LICENCES for file in source.glob(pattern) if file.is_file())
    with writing(folder):
        write_weights(tensors, folder)
        config.save_pretrained(folder)
        processor.save_pretrained(folder)
        TheirGenerationConfig(**limits).save_pretrained(folder)
        for file in licences:
            shutil.copyfile(file, folder / file.name)
    return Written(
        image_id=image_id,
        dtype=str(config.dtype).removeprefix("torch."),
        metadata=model.metadata(),
        end=encoder.template.end,
        leaves_end=bool(encoder.template.end) and encoder.template.end not in tokenizer.all_special_tokens,
        decoding=_decoding(settings, () if "min_new_tokens" in limits else ends),
        licences=tuple(file.name for file in licences),
    )


def _limits(settings: GenerationConfig, tokenizer: Any, endings: list[int]) -> dict[str, Any]:
    """The settings that a folder can hold, by transformers' names: how long an answer is, and where it ends.

    Blip2's `generate` reads them from the language model's configuration, where transformers accepts no others.
    """
    values: dict[str, Any] = {"max_new_tokens": settings.max_new_tokens}
    # transformers forbids every end token, the template's too, which may come first here; `_decoding` does not.
    if len(endings) == 1 or settings.min_new_tokens > 1:
        values["min_new_tokens"] = settings.min_new_tokens
    return values | {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": endings,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _decoding(settings: GenerationConfig, begin_suppress: Sequence[int]) -> dict[str, Any]:
    """The settings that only a call of `generate` can have, by transformers' names.

    Not `repetition_penalty`, which counts the prompt's tokens there, nor `static_cache`.

    Args:
        settings: the model's.
        begin_suppress: end tokens that cannot come first, where the folder has no `min_new_tokens`.
    """
    begin = {"begin_suppress_tokens": list(begin_suppress)} if begin_suppress and settings.min_new_tokens else {}
    beams = {"num_beams": settings.num_beams, "length_penalty": settings.length_penalty}
    sampling = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    return begin | (beams if settings.num_beams > 1 else {}) | (sampling if settings.do_sample else {})

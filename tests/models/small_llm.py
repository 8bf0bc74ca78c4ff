"""Small random language models of any kind that transformers knows, with batches and a tokenizer for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from minigpt4.common.schema import GenerationConfig
from minigpt4.common.types import IGNORED_LABEL, Batch, Encoded, Sample
from minigpt4.datasets.loaders import collate
from minigpt4.models.generation import Answer, Generator

VOCABULARY = 50
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
EOS = 5
LENGTHS = ((9, 4), (30, 1), (5, 5), (17, 12))
"""Prompt and answer tokens of each sample of a batch."""
PROMPT_LENGTHS = (7, 12, 3, 9, 5, 11, 4)


@cache
def language_model(kind: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = SIZES | {"intermediate_size": 48, "vocab_size": VOCABULARY} | options
    config = AutoConfig.for_model(kind, initializer_range=0.2, **sizes)
    model: nn.Module = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    return model


class LetterTokenizer:
    """One letter a token."""

    bos_id: int | None = None
    eos_id: int | None = EOS
    vocab_size = VOCABULARY
    special_names: Mapping[int, str] = MappingProxyType({})

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - 48 for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(48 + i) for i in ids)


def make_batch(lengths: tuple[tuple[int, int], ...] = LENGTHS) -> Batch:
    """Random token ids without images."""
    generator = torch.Generator().manual_seed(3)
    samples = []
    for prompt, answer in lengths:
        ids = torch.randint(3, VOCABULARY, (prompt + answer,), generator=generator).tolist()
        labels = [IGNORED_LABEL] * prompt + ids[prompt:]
        samples.append(Sample(image_id="", images=(), encoded=Encoded(input_ids=ids, labels=labels)))
    return collate(samples)


def embeddings(model: nn.Module, batch: Batch) -> Tensor:
    embeds: Tensor = model.get_input_embeddings()(batch.input_ids)
    return embeds.requires_grad_(True)


def random_prompts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, SIZES["hidden_size"], generator=generator) for length in PROMPT_LENGTHS]


def make_generator(kind: str, settings: GenerationConfig, stop: str = "") -> Generator:
    return Generator(language_model(kind), LetterTokenizer(), settings, stop)


def answers_one_by_one(kind: str, settings: GenerationConfig, stop: str = "") -> list[Answer]:
    """The answer of transformers' own `generate` to each of `random_prompts` alone."""
    generator = make_generator(kind, settings, stop)
    return [generator.generate_with_transformers([prompt])[0] for prompt in random_prompts()]

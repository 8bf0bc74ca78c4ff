"""Language models of several families: where images enter, the loss, the end of an answer, adapters."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minigpt4.common.errors import ConfigError
from minigpt4.common.schema import GenerationConfig, LoraConfig, LowResource
from minigpt4.conversation.tokenizer import load_tokenizer
from minigpt4.models.generation import Generator, end_tokens
from minigpt4.models.llm import build_llm
from minigpt4.models.lora import add_lora, lora_layers
from minigpt4.models.minigpt4 import answer_losses, splice_images
from tests.families import LANGUAGE_MODELS
from tests.models.parity import CPU
from tests.models.small_llm import language_model, make_batch


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("language_models")
    return {name: family.write(root / name) for name, family in LANGUAGE_MODELS.items()}


def loaded(folder: Path) -> Any:
    return build_llm(folder, LowResource.off, torch.float32, CPU)


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_texts_and_images_enter_where_the_model_takes_embeddings(folders: dict[str, Path], name: str) -> None:
    """Behind the factor by which Gemma multiplies those of its texts, as in Gemma 3's own model for images."""
    llm = loaded(folders[name])
    batch = make_batch()
    embeds = splice_images(llm.get_input_embeddings()(batch.input_ids), None, torch.empty(0, dtype=torch.long))
    losses = answer_losses(llm, embeds, batch)
    for row, length in enumerate(batch.lengths):
        logits = llm(batch.input_ids[row : row + 1, :length]).logits[0, :-1]
        expected = F.cross_entropy(logits, batch.labels[row, 1:length], reduction="sum")
        torch.testing.assert_close(losses[row], expected, rtol=1e-4, atol=1e-4)

    images = torch.randn(1, 2, embeds.shape[-1])
    spliced = splice_images(embeds, images, torch.tensor([1, 2]))
    assert torch.equal(spliced[0, 1:3], images[0])
    factor = embeds[0, 0].norm() / llm.get_input_embeddings().weight[batch.input_ids[0, 0]].norm()
    torch.testing.assert_close(float(factor), embeds.shape[-1] ** 0.5 if name == "Gemma 3" else 1.0, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["Qwen3", "Gemma 3", "SmolLM2"])
def test_tied_embeddings_need_no_second_tensor(folders: dict[str, Path], name: str) -> None:
    llm = loaded(folders[name])
    assert llm.get_output_embeddings().weight.data_ptr() == llm.get_input_embeddings().weight.data_ptr()


class Says(nn.Module):
    """An output layer by which the language model says one token after another, whatever it reads."""

    def __init__(self, vocabulary: int, tokens: list[int]) -> None:
        super().__init__()
        self.vocabulary, self.tokens = vocabulary, list(tokens)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*hidden.shape[:-1], self.vocabulary)
        logits[..., self.tokens.pop(0)] = 1.0
        return logits


@pytest.mark.parametrize(
    ("name", "end", "stop"),
    [
        ("LLaMA", "</s>", ""),
        ("Mistral", "</s>", "</s>"),
        ("Qwen3", "<|im_end|>", "<|im_end|>"),
        ("Qwen3", "<|endoftext|>", "<|im_end|>"),  # of its generation settings only
        ("Gemma 3", "<end_of_turn>", "<end_of_turn>"),  # not the tokenizer's end, and in no decoded text
        ("Gemma 3", "<eos>", "<end_of_turn>"),
    ],
)
def test_each_of_its_ends_ends_an_answer(folders: dict[str, Path], name: str, end: str, stop: str) -> None:
    llm, tokenizer = loaded(folders[name]), load_tokenizer(folders[name])
    [end_id] = tokenizer.encode(end)
    word = tokenizer.encode("dog")[-1]
    llm.set_output_embeddings(Says(len(llm.get_input_embeddings().weight), [word, end_id, word, word]))
    generator = Generator(llm, tokenizer, GenerationConfig(max_new_tokens=4), stop)
    [answer] = generator.generate([torch.randn(3, 32)])
    assert answer.token_ids == (word,) and llm.get_output_embeddings().tokens == [word, word]


def test_text_that_ends_an_answer_is_no_token(folders: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(folders["Mistral"])
    assert end_tokens(loaded(folders["Mistral"]), tokenizer, ["#"]) == (tokenizer.eos_id,)


@pytest.mark.parametrize(
    ("kind", "expected"), [("phi3", "qkv_proj"), ("gpt_neox", "query_key_value"), ("gemma2", "q_proj, v_proj")]
)
def test_adapters_sit_where_queries_and_values_are_made(kind: str, expected: str) -> None:
    options = {"phi3": {"pad_token_id": 0}}.get(kind, {})
    llm = language_model(kind, **options)
    adapters = add_lora(deepcopy(llm), LoraConfig(r=2))
    assert adapters.metadata()["lora.targets"] == expected
    assert {layer.rpartition(".")[2] for layer in lora_layers(adapters.llm)} == set(expected.split(", "))
    with pytest.raises(ConfigError, match=r"model\.lora\.targets: .* no linear layers 'q_pro'"):
        add_lora(deepcopy(llm), LoraConfig(r=2, targets=["q_pro", "v_proj"]))

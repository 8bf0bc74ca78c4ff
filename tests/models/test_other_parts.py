"""Other language models and other backbones, by name and folder alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from minigpt4.common.schema import GenerationConfig
from minigpt4.common.types import Sample
from minigpt4.datasets.loaders import collate
from minigpt4.models.loading import build_model
from minigpt4.models.minigpt4 import MiniGPT4
from tests.models.parity import Case, model_config

CPU = torch.device("cpu")
LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = LAYERS | {"num_key_value_heads": 2}
SMALL = {
    "qwen2": GROUPED,
    "mistral": GROUPED,
    "gemma2": GROUPED | {"head_dim": 8},  # logits are capped after the head
    "gpt_neox": LAYERS,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "opt": LAYERS | {"ffn_dim": 64, "word_embed_proj_dim": 32},
}


def save_language_model(kind: str, folder: Path) -> None:
    """A small random model and a byte-level tokenizer of 300 tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<bos>", "<eos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=300, bos_token_id=0, eos_token_id=1, pad_token_id=1, **SMALL[kind])
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


@pytest.fixture(scope="module", params=sorted(SMALL))
def model(request: pytest.FixtureRequest, parity_a: Case, tmp_path_factory: pytest.TempPathFactory) -> MiniGPT4:
    folder = tmp_path_factory.mktemp(request.param)
    save_language_model(request.param, folder)
    torch.manual_seed(0)
    return build_model(model_config(parity_a.folder, llama_model=str(folder), ckpt=None), CPU, torch.float32)


def sample(model: MiniGPT4, parity_a: Case, row: int, answer: str) -> Sample:
    encoded = model.encoder.encode_example("<Img><ImageHere></Img> What is it?", answer)
    return Sample(image_id=str(row), images=(parity_a.pixels[row],), encoded=encoded)


def test_loss_does_not_depend_on_padding(model: MiniGPT4, parity_a: Case) -> None:
    samples = [sample(model, parity_a, 0, "A dog."), sample(model, parity_a, 1, "Two cats on an old wall.")]
    together = model.answer_losses(collate(samples))
    alone = torch.cat([model.answer_losses(collate([one])) for one in samples])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    together.sum().backward()
    assert model.llama_proj.weight.grad is not None
    assert model.llama_proj.weight.grad.abs().sum() > 0


def test_generation_does_not_depend_on_padding(model: MiniGPT4, parity_a: Case) -> None:
    questions = ("<Img><ImageHere></Img> What is it?", "<Img><ImageHere></Img> Describe all that you see in here.")
    prompts = [model.encoder.prompt(question) for question in questions]
    settings = GenerationConfig(max_new_tokens=6)
    together = model.generate(prompts, settings, images=parity_a.pixels)
    alone = [model.generate([prompts[row]], settings, images=parity_a.pixels[[row]])[0] for row in range(2)]
    assert together == alone
    assert all(answer.token_ids for answer in together)


def test_another_backbone(parity_a: Case, tmp_path: Path) -> None:
    source = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=10)
    torch.save(source.state_dict(), tmp_path / "vit.pth")
    cfg = model_config(
        parity_a.folder,
        vit_model="vit_tiny_patch16_224",
        vit_weights=str(tmp_path / "vit.pth"),
        vit_blocks=2,
        vit_args={},
        image_size=64,  # the positional embedding is made for 224
        q_former_model=None,
        ckpt=None,
    )
    model = build_model(cfg, CPU, torch.float32)
    assert model.visual_encoder is not None
    features = model.visual_encoder(torch.randn(1, 3, 64, 64))
    assert features.shape == (1, 1 + 16, 192)
    expected = source.blocks[1].mlp.fc2.weight
    assert torch.equal(model.visual_encoder.backbone.blocks[1].mlp.fc2.weight, expected)
    assert model.encode_image(torch.randn(2, 3, 64, 64)).shape == (2, 8, 64)

"""What is trained and what is not, padding, stop strings, number formats, other language models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from minigpt4.common.schema import GenerationConfig
from minigpt4.common.types import Sample
from minigpt4.conversation.template import Template
from minigpt4.datasets.loaders import collate
from minigpt4.models.loading import build_model
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.processors.image import normalize
from tests.models.parity import CPU, Case, build_with, model_config


def test_only_the_projection_is_trained(parity_a: Case) -> None:
    model = parity_a.model
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trainable == ["llama_proj.weight", "llama_proj.bias"]
    model.zero_grad()
    model(parity_a.training_batch()).backward()
    touched = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert touched == {"llama_proj.weight", "llama_proj.bias"}
    assert model.llama_proj.weight.grad.abs().sum() > 0


def test_frozen_parts_stay_in_eval_mode(parity_a: Case) -> None:
    model = parity_a.model.train()
    assert model.llama_proj.training
    for frozen in (model.visual_encoder, model.bridge, model.llama_model):
        assert not any(module.training for module in frozen.modules())
    assert not model.eval().llama_proj.training


def test_dropout_of_the_frozen_parts_is_off_in_training(parity_a: Case) -> None:
    model = parity_a.model.train()
    batch = parity_a.training_batch()
    assert torch.equal(model(batch), model(batch))


def test_real_size_of_the_trainable_set() -> None:
    assert sum(p.numel() for p in torch.nn.Linear(768, 4096, device="meta").parameters()) == 3_149_824


def test_a_sample_is_not_changed_by_its_neighbours(parity_a: Case) -> None:
    model = parity_a.model
    inputs = parity_a.inputs["train_list"]
    together = model.answer_losses(parity_a.training_batch())
    for row in range(2):
        alone = parity_a.batch([inputs["images"][row]], [inputs["instruction"][row]], [inputs["answer"][row]])
        torch.testing.assert_close(model.answer_losses(alone)[0], together[row], rtol=1e-5, atol=1e-5)


def test_grey_levels_are_normalised_on_the_way_in(parity_a: Case) -> None:
    side = parity_a.config["image_size"]
    levels = torch.arange(3 * side * side).remainder(256).to(torch.uint8).view(1, 3, side, side)
    model = parity_a.model
    torch.testing.assert_close(model.encode_queries(levels), model.encode_queries(normalize(levels)))


def test_text_without_images(parity_a: Case) -> None:
    inputs = parity_a.inputs["train_text_only"]
    batch = parity_a.batch(None, inputs["instruction"], inputs["answer"])
    assert batch.images is None
    model = parity_a.model
    model.zero_grad()
    loss = model(batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(parameter.grad is None for parameter in model.llama_proj.parameters())


def test_images_and_positions_must_agree(parity_a: Case) -> None:
    prompt = parity_a.model.encoder.prompt("<Img><ImageHere></Img> What is it?")
    with pytest.raises(ValueError, match="8 image positions in the prompts, but 16 image embeddings"):
        parity_a.model.generate([prompt], GenerationConfig(), images=parity_a.pixels[:2])


def generate(model: MiniGPT4, case: Case, rows: list[int], **settings: object) -> list[str]:
    prompts = [model.encoder.encode_rendered(case.inputs["generate"]["prompts"][row]) for row in rows]
    images = case.pixels[[case.inputs["generate"]["images"][row] for row in rows]]
    answers = model.generate(prompts, GenerationConfig(max_new_tokens=24, **settings), images=images)  # type: ignore[arg-type]
    return [answer.text for answer in answers]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_batch_and_single_prompts_give_the_same_text(parity_a: Case, num_beams: int) -> None:
    together = generate(parity_a.model, parity_a, [0, 1, 2], num_beams=num_beams)
    alone = [generate(parity_a.model, parity_a, [row], num_beams=num_beams)[0] for row in range(3)]
    assert together == alone
    assert len(set(together)) > 1


def test_each_sample_stops_at_its_own_stop_string(parity_a: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    template = parity_a.model.encoder.template
    monkeypatch.setattr(parity_a.model.encoder, "template", Template(template.pattern, end=""))
    free = generate(parity_a.model, parity_a, [0, 2])
    stop = free[1][5:8]
    assert stop not in free[0]
    monkeypatch.setattr(parity_a.model.encoder, "template", Template(template.pattern, end=stop))
    prompts = [parity_a.model.encoder.encode_rendered(parity_a.inputs["generate"]["prompts"][row]) for row in (0, 2)]
    answers = parity_a.model.generate(prompts, GenerationConfig(max_new_tokens=24), images=parity_a.pixels[[0, 0]])
    free_ids = parity_a.new_tokens(parity_a.expected["greedy"]["ids"][2])
    assert [answer.text for answer in answers] == [free[0], free[1].split(stop)[0].strip()]
    assert 0 < len(answers[1].token_ids) < len(free_ids)


def test_queries_computed_before_give_the_same_answers(parity_a: Case) -> None:
    model = parity_a.model
    prompts = [model.encoder.encode_rendered(prompt) for prompt in parity_a.inputs["generate"]["prompts"][:2]]
    settings = GenerationConfig(max_new_tokens=10)
    direct = model.generate(prompts, settings, images=parity_a.pixels)
    assert model.generate(prompts, settings, queries=model.encode_queries(parity_a.pixels)) == direct


def test_sampling_follows_the_seed(parity_a: Case) -> None:
    def sampled(seed: int) -> list[str]:
        torch.manual_seed(seed)
        return generate(parity_a.model, parity_a, [0, 2], do_sample=True, temperature=1.5, top_p=1.0)

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_projection_in_float32(parity_a: Case, dtype: torch.dtype) -> None:
    model = build_model(model_config(parity_a.folder), CPU, dtype)
    assert model.llama_proj.weight.dtype == torch.float32
    assert model.bridge.ln_vision.weight.dtype == torch.float32
    assert {p.dtype for p in model.llama_model.parameters()} == {dtype}
    batch = parity_a.training_batch()
    loss = model(batch) / batch.num_targets
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(float(parity_a.arrays["train_list.loss"]), rel=0.02)
    assert model.llama_proj.weight.grad.dtype == torch.float32


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
    return build_with(parity_a, llama_model=str(folder), ckpt=None)


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

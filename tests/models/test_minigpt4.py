"""What learns and what does not, padding, stopping, quantised loading."""

from __future__ import annotations

import pytest
import torch

from minigpt4.common.schema import GenerationConfig, LowResource
from minigpt4.common.types import Batch
from minigpt4.conversation.template import Template
from minigpt4.models.loading import build_model
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.processors.image import normalize
from tests.models.parity import Case, model_config

CPU = torch.device("cpu")


def training_batch(case: Case) -> Batch:
    inputs = case.inputs["train_list"]
    return case.batch(inputs["images"], inputs["instruction"], inputs["answer"])


def test_only_the_projection_learns(parity_a: Case) -> None:
    model = parity_a.model
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert learning == ["llama_proj.weight", "llama_proj.bias"]
    model.zero_grad()
    model(training_batch(parity_a)).backward()
    touched = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert touched == {"llama_proj.weight", "llama_proj.bias"}
    assert model.llama_proj.weight.grad.abs().sum() > 0


def test_frozen_parts_stay_in_eval_mode(parity_a: Case) -> None:
    model = parity_a.model.train()
    assert model.llama_proj.training
    for frozen in (model.visual_encoder, model.qformer, model.llama_model):
        assert not any(module.training for module in frozen.modules())
    assert not model.eval().llama_proj.training


def test_dropout_of_the_frozen_parts_is_off_in_training(parity_a: Case) -> None:
    model = parity_a.model.train()
    batch = training_batch(parity_a)
    assert torch.equal(model(batch), model(batch))


def test_real_size_of_the_trainable_set() -> None:
    assert sum(p.numel() for p in torch.nn.Linear(768, 4096, device="meta").parameters()) == 3_149_824


def test_a_sample_is_not_changed_by_its_neighbours(parity_a: Case) -> None:
    model = parity_a.model
    inputs = parity_a.inputs["train_list"]
    together = model.answer_losses(training_batch(parity_a))
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
    gradients = [parameter.grad for parameter in model.llama_proj.parameters()]
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients), "there, and zero"


def test_images_and_places_must_agree(parity_a: Case) -> None:
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


def test_each_sample_stops_at_its_own_stop_text(parity_a: Case, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize(
    ("low_resource", "tolerance", "alike"), [(LowResource.int8, 0.02, 0.98), (LowResource.nf4, 0.12, 0.75)]
)
def test_quantised_language_model(parity_a: Case, low_resource: LowResource, tolerance: float, alike: float) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    model = build_model(model_config(parity_a.folder, low_resource=low_resource), CPU, torch.float32)
    assert model.device == CPU
    layer = model.llama_model.get_decoder().layers[0].self_attn.q_proj
    assert layer.weight.dtype in (torch.int8, torch.uint8)
    batch = training_batch(parity_a)
    loss = model(batch) / batch.num_targets
    reference = parity_a.model(batch) / batch.num_targets
    assert loss.item() == pytest.approx(reference.item(), rel=tolerance)
    assert loss.item() != reference.item()
    loss.backward()
    parity_a.model.zero_grad()
    reference.backward()
    ours, plain = model.llama_proj.weight.grad, parity_a.model.llama_proj.weight.grad
    assert torch.nn.functional.cosine_similarity(ours.flatten(), plain.flatten(), dim=0) > alike


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_projection_in_float32(parity_a: Case, dtype: torch.dtype) -> None:
    model = build_model(model_config(parity_a.folder), CPU, dtype)
    assert model.llama_proj.weight.dtype == torch.float32
    assert model.qformer.ln_vision.weight.dtype == torch.float32
    assert {p.dtype for p in model.llama_model.parameters()} == {dtype}
    batch = training_batch(parity_a)
    loss = model(batch) / batch.num_targets
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(float(parity_a.arrays["train_list.loss"]), rel=0.02)
    assert model.llama_proj.weight.grad.dtype == torch.float32

"""The original implementation's numbers, reproduced from the published file layouts.

Runs over the fixture that ships with the tests and over every folder named in MINIGPT4_PARITY_DIRS
(separated as PATH is). Tolerance: 1e-4 relative; float32 noise of the original is below 1e-5.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from minigpt4.common.types import IGNORED_LABEL, IMAGE_POSITION
from minigpt4.conversation.template import Template
from minigpt4.processors.image import ImageProcessor, normalize
from tests.models.parity import Case

RELATIVE = 1e-4
FOLDERS = [Path(__file__).parent.parent / "fixtures" / name for name in ("parity_a", "parity_v")] + [
    Path(folder) for folder in os.environ.get("MINIGPT4_PARITY_DIRS", "").split(os.pathsep) if folder
]


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


TRAIN_CASES = (
    "train_single", "train_list", "train_text_only", "train_conversation", "train_two_turn", "train_multi_image"
)  # fmt: skip


@pytest.fixture(params=TRAIN_CASES)
def name(request: pytest.FixtureRequest, case: Case) -> str:
    """A batch of the fixture."""
    if request.param not in case.inputs:
        pytest.skip(f"{case.folder} has no such batch")
    return str(request.param)


def assert_close_to(actual: torch.Tensor, expected: np.ndarray) -> None:
    wanted = torch.from_numpy(np.asarray(expected))
    assert actual.shape == wanted.shape
    torch.testing.assert_close(actual.detach(), wanted, rtol=RELATIVE, atol=RELATIVE * float(wanted.abs().max()))


def test_pixels(case: Case) -> None:
    processor = ImageProcessor(case.config["image_size"])
    pixels = normalize(torch.stack([processor(Image.fromarray(image)) for image in case.images["images_uint8"]]))
    assert_close_to(pixels, case.images["pixel_values"])


def test_positional_embedding(case: Case) -> None:
    assert_close_to(case.model.visual_encoder.backbone.pos_embed, case.arrays["pos_embed_used"])


def test_vision_encoder(case: Case) -> None:
    features = case.model.visual_encoder(case.pixels)
    assert_close_to(features, case.arrays["vit_out"][:, -features.shape[1] :])  # without a Q-Former, no class token


def test_layer_norm_and_bridge(case: Case) -> None:
    features = case.model.visual_encoder(case.pixels)
    if "qformer_last_hidden_state" not in case.arrays:
        joined = case.arrays["ln_vision_out"][:, 1:].reshape(len(features), -1, 4 * features.shape[-1])
        assert_close_to(case.model.bridge(features), joined)
        return
    assert_close_to(case.model.bridge.ln_vision(features), case.arrays["ln_vision_out"])
    assert_close_to(case.model.bridge(features), case.arrays["qformer_last_hidden_state"])


def test_projected_images(case: Case) -> None:
    assert_close_to(case.model.encode_image(case.pixels), case.arrays["encode_img"])


def test_token_ids_of_every_string(case: Case) -> None:
    tokenizer = case.model.encoder.tokenizer
    rows = case.tokens["rows"]
    assert len(rows) > 30
    assert [tokenizer.encode(row["text"]) for row in rows] == [row["ids"] for row in rows]


def test_decoded_text(case: Case) -> None:
    # The original made "$$" its padding token, so that decoding drops it from a real answer; ours keeps it.
    rows = [row for row in case.tokens["rows"] if case.tokens["pad_token_id"] not in row["ids"]]
    decoded = [case.model.encoder.tokenizer.decode(row["ids"]) for row in rows]
    assert decoded == [row["decode_skip_special"] for row in rows]


def test_training_sequence(case: Case, name: str) -> None:
    batch = case.named_batch(name)
    image_embeds = None if batch.images is None else case.model.encode_image(batch.images)
    embeds = case.model.embed(batch.input_ids, image_embeds, batch.image_positions)
    logits = case.model.llama_model(inputs_embeds=embeds).logits
    mask = case.arrays[f"{name}.attention_mask"].astype(bool)
    for row, length in enumerate(batch.lengths):
        # Padding is ours to choose: each sample's own positions are compared, wherever the original had put them.
        own = mask[row]
        assert length == own.sum()
        for array, ours in (("inputs_embeds", embeds), ("logits", logits)):
            if f"{name}.{array}" in case.arrays:
                assert_close_to(ours[row, :length], case.arrays[f"{name}.{array}"][row][own])
        assert batch.labels[row, :length].tolist() == case.arrays[f"{name}.targets"][row][own].tolist()
        assert (batch.labels[row, length:] == IGNORED_LABEL).all()


def test_loss_and_gradient(case: Case, name: str) -> None:
    batch = case.named_batch(name)
    case.model.zero_grad()
    loss = case.model(batch) / batch.num_targets
    assert_close_to(loss, case.arrays[f"{name}.loss"])
    loss.backward()
    for own, theirs in case.model.trainable_names().items():
        if f"{name}.grad.{theirs}" in case.arrays:
            gradient = case.model.get_parameter(own).grad
            expected = case.arrays[f"{name}.grad.{theirs}"]
            assert_close_to(torch.zeros(expected.shape) if gradient is None else gradient, expected)


def test_loss_of_each_sample(case: Case) -> None:
    inputs = case.inputs["train_list"]
    losses = case.model.answer_losses(case.batch(inputs["images"], inputs["instruction"], inputs["answer"]))
    # The original averages over all positions of the padded sequence, targets or not; the sum is the same.
    width = case.arrays["train_list_reduction_none.targets"].shape[1] - 1
    assert_close_to(losses, case.arrays["train_list_reduction_none.loss"] * width)


def test_ranking_of_candidate_answers(case: Case) -> None:
    inputs = case.inputs["multi_select"]
    columns = []
    for answers in inputs["answers"]:
        batch = case.batch(inputs["images"], inputs["texts"], answers)
        columns.append(case.model.answer_losses(batch) / (batch.input_ids.shape[1] - 1))
    losses = torch.stack(columns, dim=1)
    for row, num_candidates in enumerate(inputs["num_cand"]):
        losses[row, num_candidates:] = torch.inf
    assert losses.argsort(dim=1).tolist() == case.expected["multi_select"]["ranks"]


def test_generated_tokens(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    # The original never stops at the end mark; with none of ours, the same tokens follow to its length limit.
    monkeypatch.setattr(case.model.encoder, "template", Template(case.config["prompt_template"], end=""))
    assert {"greedy", "beam4", "beam4_lp2", "beam4_lpm1"} <= set(case.generations)
    for name in case.generations:
        expected = case.expected[name]
        prompts = [case.model.encoder.encode_rendered(prompt) for prompt in expected["prompts"]]
        images = case.pixels[case.inputs["generate"]["images"][: len(prompts)]]
        answers = case.model.generate(prompts, case.settings(expected["kwargs"]), images=images)
        assert [list(answer.token_ids) for answer in answers] == [case.new_tokens(row) for row in expected["ids"]], name


def test_prompt_embeddings_for_generation(case: Case) -> None:
    expected = case.inputs["generate"]
    for prompt, index, segments in zip(expected["prompts"], expected["images"], expected["segment_ids"], strict=True):
        ids = case.model.encoder.encode_rendered(prompt)
        between = [IMAGE_POSITION] * case.model.encoder.num_image_tokens
        assert ids == segments[0] + between + segments[1]
        row = torch.tensor([ids])
        places = (row.flatten() == IMAGE_POSITION).nonzero().squeeze(1)
        embeds = case.model.embed(row, case.model.encode_image(case.pixels[[index]]), places)
        number = expected["prompts"].index(prompt)
        own = case.arrays["gen.attention_mask.3"][number].astype(bool)
        assert_close_to(embeds[0], case.arrays["gen.inputs_embeds.3"][number][own])


def test_chat_prompts(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case.model.encoder, "template", Template(case.config["prompt_template"], end=""))
    for name, chat in case.expected["chat"].items():
        before, after = chat["segment_ids"]
        prompt = before + [IMAGE_POSITION] * case.model.encoder.num_image_tokens + after
        if not chat["prompt"].startswith("<s>"):  # there the original puts a second BOS in front; ours has one
            assert case.model.encoder.encode_rendered(chat["prompt"]) == prompt, name
        (answer,) = case.model.generate([prompt], case.settings(chat["kwargs"]), images=case.pixels[:1])
        assert list(answer.token_ids) == case.new_tokens(chat["greedy_ids"]), name


def test_embeddings_of_two_turns(case: Case) -> None:
    if not any(name.startswith("chat.") for name in case.arrays):
        pytest.skip(f"{case.folder} has no embeddings of conversations")
    image = case.model.encode_image(case.pixels[:1])
    for name, chat in case.expected["chat"].items():
        for turn, key in (("prompt", "embs"), ("prompt2", "embs2")):
            second_bos = chat[turn].startswith("<s>")  # of the original; ours has one
            ids = torch.tensor([case.model.encoder.encode_rendered(chat[turn].removeprefix("<s>"))])
            places = (ids.flatten() == IMAGE_POSITION).nonzero().squeeze(1)
            embeds = case.model.embed(ids, image, places)
            assert_close_to(embeds[0], case.arrays[f"chat.{name}.{key}"][0][int(second_bos) :])

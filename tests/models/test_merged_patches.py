"""MiniGPT-4 without a Q-Former, as published for LLaMA-2: neighbouring patches joined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from minigpt4.common.checkpoint import model_state, read_checkpoint, write_checkpoint
from minigpt4.common.errors import CheckpointError, ConfigError
from minigpt4.common.schema import LoraConfig, ModelConfig, check_values
from minigpt4.common.types import IMAGE_POSITION
from minigpt4.datasets.feature_cache import cache_identity
from minigpt4.models.loading import build_model, build_prompt_encoder
from minigpt4.models.merged_patches import MergedPatches
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.vision import empty_vision_encoder
from minigpt4.processors.image import CLIP
from tests.models.parity import CPU, Case, build_with, model_config
from tests.models.test_parity import assert_close_to


def config(case: Case, **changes: Any) -> ModelConfig:
    return model_config(case.folder, **{"arch": "minigpt4", "ckpt": None, "lora": LoraConfig()} | changes)


@pytest.fixture(scope="module")
def checkpoint(parity_v: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as published for LLaMA-2: a projection and nothing else."""
    path = tmp_path_factory.mktemp("published") / "checkpoint.pth"
    state = model_state(read_checkpoint(parity_v.folder / "minigpt4.pth"))
    write_checkpoint(path, {"model": {name: state[name] for name in ("llama_proj.weight", "llama_proj.bias")}})
    return path


@pytest.fixture(scope="module")
def model(parity_v: Case, checkpoint: Path) -> MiniGPT4:
    return build_model(config(parity_v, ckpt=str(checkpoint)), CPU, torch.float32)


def test_images_become_the_original_embeddings(parity_v: Case, model: MiniGPT4) -> None:
    assert model.visual_encoder is not None
    assert_close_to(model.visual_encoder.backbone.pos_embed, parity_v.arrays["pos_embed_used"])
    features = model.visual_encoder(parity_v.pixels)
    assert_close_to(features, parity_v.arrays["vit_out"][:, 1:])  # the class token is dropped
    assert_close_to(model.encode_image(parity_v.pixels), parity_v.arrays["encode_img"])


def test_neighbours_are_joined_in_raster_order() -> None:
    features = torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(0))
    merged = MergedPatches(6, joined=4)(features)
    assert merged.shape == (2, 2, 24)
    expected = torch.nn.functional.layer_norm(features[:, 4:8], (6,))
    torch.testing.assert_close(merged[:, 1], expected.flatten(1))
    assert MergedPatches(6, joined=1)(features).shape == features.shape


def test_features_are_normalised_in_float32() -> None:
    features = 1000 + torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(0)).half()
    merged = MergedPatches(64, joined=4)(features)
    assert merged.dtype == torch.float16
    exact = torch.nn.functional.layer_norm(features.float(), (64,)).half()
    assert torch.equal(merged, exact.flatten(1)[:, None])


def test_number_and_width_follow_the_image_size(parity_v: Case, model: MiniGPT4) -> None:
    assert (model.encoder.num_image_tokens, model.query_width) == (9, 4 * 64)
    assert model.encoder.prompt("<ImageHere> What?").count(IMAGE_POSITION) == 9
    assert build_prompt_encoder(config(parity_v, image_size=112)).num_image_tokens == 16
    published = empty_vision_encoder(ModelConfig(image_size=448, has_qformer=False))
    assert (published.num_patches, published.num_tokens, published.width) == (1024, 1024, 1408)


def test_patches_that_cannot_be_grouped(parity_v: Case) -> None:
    with pytest.raises(ConfigError, match=r"model\.image_size: at side 42, an image has 9 patches; .* multiple of 4"):
        build_prompt_encoder(config(parity_v, image_size=42))


def test_trained_parts_load_into_the_same_architecture_only(parity_v: Case, checkpoint: Path, parity_a: Case) -> None:
    with pytest.raises(CheckpointError, match=r"llama_proj\.weight has shape \(64, 256\)"):
        build_model(model_config(parity_a.folder, ckpt=str(checkpoint)), CPU, torch.float32)


def test_a_checkpoint_of_another_image_size_or_bridge_names_the_setting(
    parity_v: Case, parity_a: Case, tmp_path: Path
) -> None:
    model = parity_v.model
    write_checkpoint(tmp_path / "c.pth", {"model": model.trainable_state(), "metadata": model.metadata()})
    with pytest.raises(CheckpointError, match=r'num_query_token "9", this .* "16"; set model\.image_size to 84, or'):
        build_with(parity_v, image_size=112, ckpt=str(tmp_path / "c.pth"))
    with pytest.raises(CheckpointError, match=r'num_query_token "9", .* set model\.has_qformer to false, or'):
        build_with(parity_a, prompt_template="[INST] {} [/INST]", end_sym="</s>", ckpt=str(tmp_path / "c.pth"))


def test_identities_name_the_bridge(parity_v: Case, parity_a: Case, model: MiniGPT4) -> None:
    identity = cache_identity(config(parity_v), CLIP, torch.float32)
    assert identity["has_qformer"] == "false" and "q_former_model" not in identity
    assert "has_qformer" not in cache_identity(model_config(parity_a.folder), CLIP, torch.float32)
    assert model.metadata()["base.has_qformer"] == "false" and model.metadata()["num_query_token"] == "9"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"arch": "minigpt_v2", "has_qformer": True}, "has_qformer"),
        ({"q_former_model": "qformer.pth"}, "q_former_model"),
        ({"num_query_token": 64}, "num_query_token"),
    ],
)
def test_settings_that_contradict_each_other(parity_v: Case, changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.{key}: "):
        check_values(config(parity_v, **changes), "model.")


def test_answers_follow_the_images(parity_v: Case, model: MiniGPT4) -> None:
    prompts = [model.encoder.prompt("<Img><ImageHere></Img> What is it?")] * 3
    settings = parity_v.settings(parity_v.expected["greedy"]["kwargs"])
    assert len({answer.text for answer in model.generate(prompts, settings, images=parity_v.pixels)}) == 3

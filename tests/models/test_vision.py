"""The vision encoder: other backbones, and files that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from minigpt4.common.errors import CheckpointError, ConfigError
from minigpt4.models.loading import build_model
from tests.models.parity import CPU, Case, build_with, model_config


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
        allow_random=True,
        ckpt=None,
    )
    model = build_model(cfg, CPU, torch.float32)
    assert model.visual_encoder is not None
    features = model.visual_encoder(torch.randn(1, 3, 64, 64))
    assert features.shape == (1, 1 + 16, 192)
    expected = source.blocks[1].mlp.fc2.weight
    assert torch.equal(model.visual_encoder.backbone.blocks[1].mlp.fc2.weight, expected)
    assert model.encode_image(torch.randn(2, 3, 64, 64)).shape == (2, 8, 64)


def test_vision_file_with_too_few_blocks(parity_a: Case) -> None:
    with pytest.raises(CheckpointError, match=r"missing: blocks\.4"):
        build_with(parity_a, vit_blocks=5)


def test_wrong_sizes_name_the_tensor(parity_a: Case) -> None:
    options = dict(model_config(parity_a.folder).vit_args, mlp_ratio=2.0)
    with pytest.raises(CheckpointError, match=r"blocks\.0\.mlp\.fc1\.weight has shape \(279, 64\)"):
        build_with(parity_a, vit_args=options)


def test_an_unknown_backbone(parity_a: Case) -> None:
    with pytest.raises(ConfigError, match="timm cannot build 'eva_gigantic'"):
        build_with(parity_a, vit_model="eva_gigantic")


@pytest.mark.parametrize(
    "options",
    [
        {"embed_dim": "wide"},
        {"embed_dim": -64},
        {"num_heads": 0},
        {"num_heads": "four"},
        {"num_heads": [4]},
        {"patch_size": 0},
        {"patch_size": "8"},
        {"patch_size": {"side": 8}},
        {"mlp_ratio": "big"},
        {"mlp_ratio": -4.0},
        {"mlp_ratio": [1, 2]},
        {"embed_dims": 64},
        {"act_layer": "no such layer"},
        {"norm_layer": 3},
        {"img_size": 28},
        {"depth": 2},
    ],
)
def test_values_that_timm_cannot_take(parity_a: Case, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"model\.vit_(model|args)") as caught:
        build_with(parity_a, vit_args=model_config(parity_a.folder).vit_args | options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("image_size", [0, 1, 15, 57])
def test_an_image_that_is_not_made_of_patches(parity_a: Case, image_size: int) -> None:
    with pytest.raises(ConfigError, match=r"model\.image_size"):
        build_with(parity_a, image_size=image_size)

"""Vision backbones of several families: features, weights in their layouts, normalisation, and what is refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from minigpt4.common.checkpoint import frozen_identity
from minigpt4.common.errors import CheckpointError, ConfigError
from minigpt4.common.schema import ClassToken, ModelConfig, check_values
from minigpt4.datasets.feature_cache import cache_identity
from minigpt4.models.vision import VisionEncoder, build_vision_encoder, image_statistics
from minigpt4.processors.image import CLIP, normalize
from tests.families import BACKBONES
from tests.models.parity import CPU

HALF = (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: family.write(tmp_path_factory.mktemp(name) / "folder") for name, family in BACKBONES.items()}


def config(name: str, folder: Path | str | None, **changes: Any) -> ModelConfig:
    """The configuration of a family at the size of its small weights."""
    family = BACKBONES[name]
    settings = family.model_settings(Path("unused")) | {
        "vit_weights": None if folder is None else str(folder),
        "image_size": family.native_size,
        "vit_feature_layer": "last",
        "vit_class_token": ClassToken.auto,
        "vit_args": family.options,
        "vit_blocks": 3,
    }
    settings.pop("projector", None)
    return ModelConfig(**settings | changes)


def encode(cfg: ModelConfig, images: Tensor) -> Tensor:
    features: Tensor = build_vision_encoder(cfg, torch.float32, CPU)(images)
    return features


def random_images(side: int) -> Tensor:
    return torch.randint(0, 256, (2, 3, side, side), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize(("layer", "blocks"), [("last", 3), ("penultimate", 2), ("1", 1)])
def test_features_are_those_of_timm(folders: dict[str, Path], name: str, layer: str, blocks: int) -> None:
    images = random_images(BACKBONES[name].native_size)
    timms = BACKBONES[name].make().eval()
    statistics = timms.pretrained_cfg
    pixels = (images / 255 - torch.tensor(statistics["mean"]).view(3, 1, 1)) / torch.tensor(statistics["std"]).view(
        3, 1, 1
    )
    with torch.no_grad():
        [expected] = timms.forward_intermediates(pixels, [blocks - 1], output_fmt="NLC", intermediates_only=True)
    features = encode(config(name, folders[name], vit_feature_layer=layer), images)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    cfg = config(name, folders[name], vit_feature_layer=layer, has_qformer=True)
    with_class = encode(cfg, images)
    assert with_class.shape[1] - features.shape[1] == (name != "SigLIP")
    assert torch.equal(with_class[:, -features.shape[1] :], features)


def test_the_policy_of_the_class_token(folders: dict[str, Path]) -> None:
    images = random_images(32)
    kept = encode(config("CLIP", folders["CLIP"], vit_class_token=ClassToken.keep, joined_patches=1), images)
    dropped = encode(config("CLIP", folders["CLIP"], vit_class_token=ClassToken.drop, has_qformer=True), images)
    assert (kept.shape[1], dropped.shape[1]) == (5, 4) and torch.equal(kept[:, 1:], dropped)
    with pytest.raises(ConfigError, match=r"vit_class_token: keep, but 'vit_base_patch16_siglip_224.webli' has no"):
        VisionEncoder(config("SigLIP", None, vit_class_token=ClassToken.keep))
    with pytest.raises(ConfigError, match=r"model\.vit_class_token: keep: 4 neighbouring patches are joined"):
        check_values(config("CLIP", None, vit_class_token=ClassToken.keep, joined_patches=4), "model.")


def test_images_are_normalised_as_the_backbone_was_trained(folders: dict[str, Path], tmp_path: Path) -> None:
    assert image_statistics(ModelConfig()) == CLIP
    assert image_statistics(config("EVA", None)) == CLIP
    assert image_statistics(config("SigLIP", None)) == (HALF, HALF)
    own = image_statistics(config("SigLIP", None, image_mean=[0.1, 0.2, 0.3]))
    assert own == ((0.1, 0.2, 0.3), HALF)
    described = json.loads((folders["SigLIP"] / "config.json").read_text())
    described["pretrained_cfg"]["mean"] = [0.4, 0.4, 0.4]
    (tmp_path / "config.json").write_text(json.dumps(described))
    assert image_statistics(config("SigLIP", tmp_path)).mean == (0.4, 0.4, 0.4)

    images = random_images(32)
    floats = normalize(images, image_statistics(config("SigLIP", None)))
    assert torch.equal(encode(config("SigLIP", None), images), encode(config("SigLIP", None), floats))


@pytest.mark.parametrize(
    ("key", "value"),
    [("image_mean", [0.5]), ("image_mean", [0.5, 0.5, 127.5]), ("image_mean", [0.5, float("nan"), 0.5]),
     ("image_std", [0.5, 0.0, 0.5]), ("vit_feature_layer", "0"), ("vit_feature_layer", "-2"),
     ("vit_feature_layer", "first"), ("joined_patches", 0)],
)  # fmt: skip
def test_settings_out_of_range(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^model\.{key}: "):
        check_values(ModelConfig(**{key: value}), "model.")


def test_positions_are_resized_without_the_tokens_that_have_none(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "minigpt4"):
        cfg = config("DINOv2", folders["DINOv2"], image_size=28)
        encoder = build_vision_encoder(cfg, torch.float32, CPU)
    assert "its positions are resized to 2 x 2 patches" in caplog.text
    positions = load_file(folders["DINOv2"] / "model.safetensors")["pos_embed"]  # of patches only
    means = torch.nn.functional.interpolate(positions.view(1, 4, 4, -1).permute(0, 3, 1, 2), size=2, mode="bicubic")
    torch.testing.assert_close(encoder.backbone.pos_embed, means.flatten(2).transpose(1, 2))
    assert encoder(random_images(28)).shape == (2, 4, 32)


def test_the_size_that_a_backbone_was_trained_with_need_not_be_made_of_patches() -> None:
    small = {"embed_dim": 8, "num_heads": 2}
    cfg = ModelConfig(vit_model="vit_so400m_patch14_siglip_384", image_size=384, vit_blocks=1, vit_args=small)
    assert VisionEncoder(cfg).num_patches == 27 * 27
    with pytest.raises(ConfigError, match=r"model\.image_size: 385 should be a multiple of 14"):
        VisionEncoder(replace(cfg, image_size=385))


def test_blocks_may_be_left_to_the_backbone() -> None:
    small = {"embed_dim": 8, "num_heads": 2}
    cfg = ModelConfig(vit_model="vit_base_patch16_siglip_224", image_size=32, vit_blocks=None, vit_args=small)
    assert len(VisionEncoder(cfg).backbone.blocks) == 12
    assert len(VisionEncoder(replace(cfg, vit_feature_layer="penultimate")).backbone.blocks) == 11
    with pytest.raises(ConfigError, match=r"model\.vit_feature_layer: 13, but .* has 12 blocks"):
        VisionEncoder(replace(cfg, vit_feature_layer="13"))
    with pytest.raises(ConfigError, match=r"model\.vit_feature_layer: penultimate, but .* has 1 blocks"):
        VisionEncoder(replace(cfg, vit_blocks=1, vit_feature_layer="penultimate"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("swin_tiny_patch4_window7_224", "is a SwinTransformer, no plain vision transformer"),
        ("convnext_tiny", "timm cannot build 'convnext_tiny'"),
        ("vit_base_patch16_siglip_224.openai", "timm knows no weights 'openai' of vit_base_patch16_siglip_224"),
        ("timm/vit_base_patch16_siglip_224", "did you mean 'vit_base_patch16_siglip_224'"),
    ],
)
def test_backbones_that_cannot_be_used(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VisionEncoder(ModelConfig(vit_model=name, vit_blocks=None))


def test_a_folder_of_another_backbone_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"describes a backbone 'vit_base_patch16_siglip_224', model\.vit_model is"):
        build_vision_encoder(config("CLIP", folders["SigLIP"]), torch.float32, CPU)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    with pytest.raises(ConfigError, match=r"no backbone of timm .*as timm publishes it"):
        build_vision_encoder(config("SigLIP", tmp_path), torch.float32, CPU)
    for broken in ({"mean": [0.5]}, {"mean": "half"}, {"std": [0.5, 0, 0.5]}, {"std": [0.5, None, 0.5]}, [0.5]):
        described = {"architecture": "vit_base_patch16_siglip_224", "pretrained_cfg": broken}
        (tmp_path / "config.json").write_text(json.dumps(described))
        with pytest.raises(ConfigError, match=r"config\.json: pretrained_cfg"):
            image_statistics(config("SigLIP", tmp_path))
    with pytest.raises(CheckpointError, match="has 0 files of weights"):
        frozen_identity(str(tmp_path), {})
    save_file({"vision_model.embeddings.patch_embedding.weight": torch.zeros(2)}, tmp_path / "siglip.safetensors")
    with pytest.raises(CheckpointError, match=r"in no layout that timm knows .*not those for transformers"):
        build_vision_encoder(config("SigLIP", tmp_path / "siglip.safetensors"), torch.float32, CPU)


def test_folder_and_file_are_the_same_weights(folders: dict[str, Path]) -> None:
    file = folders["EVA"] / "model.safetensors"
    assert frozen_identity(str(folders["EVA"]), {}) == frozen_identity(str(file), {})


def test_a_cache_knows_how_images_were_normalised(folders: dict[str, Path]) -> None:
    cfg = config("SigLIP", folders["SigLIP"])
    identity = cache_identity(cfg, image_statistics(cfg), torch.float32)
    assert identity["transform"].endswith("mean 0.5, 0.5, 0.5, deviation 0.5, 0.5, 0.5")
    assert identity != cache_identity(cfg, CLIP, torch.float32)
    assert identity | {"vit_feature_layer": "1"} == cache_identity(
        replace(cfg, vit_feature_layer="1"), image_statistics(cfg), torch.float32
    )


def as_openai(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's tensors under the names of OpenAI's and OpenCLIP's files."""
    names = (
        ("patch_embed.proj", "conv1"), ("pos_embed", "positional_embedding"), ("cls_token", "class_embedding"),
        ("blocks.", "transformer.resblocks."), ("norm_pre", "ln_pre"), (".norm1", ".ln_1"), (".norm2", ".ln_2"),
        ("attn.qkv.", "attn.in_proj_"), ("attn.proj", "attn.out_proj"), ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"), ("norm.", "ln_post."),
    )  # fmt: skip
    renamed = {}
    for name, tensor in state.items():
        if not name.startswith("head"):
            for ours, theirs in names:
                name = name.replace(ours, theirs)
            squeezed = name in ("positional_embedding", "class_embedding")
            renamed[f"visual.{name}"] = tensor.reshape(-1, 32).squeeze(0).clone() if squeezed else tensor
    return renamed


def as_meta(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's tensors as in DINOv2's own files with registers, whose positions include that of the class token."""
    state = dict(state)
    registers, positions = state.pop("reg_token"), state.pop("pos_embed")
    first = torch.full((1, 1, positions.shape[-1]), 0.25)
    state["cls_token"] = state["cls_token"] - first
    extra = {"register_tokens": registers, "mask_token": torch.zeros(1, 32)}
    return state | extra | {"pos_embed": torch.cat([first, positions], dim=1)}


@pytest.mark.parametrize(("name", "published"), [("CLIP", as_openai), ("DINOv2", as_meta)])
def test_weights_as_their_authors_publish_them(
    folders: dict[str, Path], tmp_path: Path, name: str, published: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    torch.save(published(load_file(folders[name] / "model.safetensors")), tmp_path / "published.pth")
    images = random_images(28 if name == "DINOv2" else 32)  # where positions are resized, in the same way
    changes = {"has_qformer": True, "image_size": images.shape[-1]}
    ours = encode(config(name, folders[name], **changes), images)
    theirs = encode(config(name, tmp_path / "published.pth", **changes), images)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)


def test_another_activation_than_the_weights_were_trained_with_is_said(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("vit_base_patch16_clip_224", "vit_base_patch16_clip_quickgelu_224"):
        caplog.clear()
        build_vision_encoder(config("CLIP", None, vit_model=f"{name}.openai"), torch.float32, CPU)
        assert ("trained with QuickGELU" in caplog.text) == ("quickgelu" not in name)

"""The frozen vision encoder: a timm backbone without its final norm."""

from __future__ import annotations

import logging
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import init_empty_weights
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from minigpt4.common.checkpoint import (
    load_strictly,
    model_state,
    read_checkpoint,
    seeded_weights,
    unexpected_keys,
    weights_file,
)
from minigpt4.common.errors import CheckpointError, ConfigError, did_you_mean, first_few, one_line
from minigpt4.common.files import read_json
from minigpt4.common.schema import FEATURE_LAYERS, ClassToken, ModelConfig
from minigpt4.processors.image import ChannelStatistics, normalize

logger = logging.getLogger(__name__)
VIT_UNUSED = (r"(norm|fc_norm|head|attn_pool)\.", r".*attn\.(k_bias|relative_position_index)$")
"""Final norm, pooling and classifier, which come after the features."""
PATCHES = "patch_embed.proj.weight"
"""A tensor that every file in timm's layout has."""
QUICK_GELU = "quickgelu"
"""In a note of timm about weights, and in the name of the backbone that computes as they were trained."""


class VisionEncoder(nn.Module):
    """Images -> patch features, with the class token in front where it is kept.

    The published EVA-ViT-G/14 uses 39 of its 40 blocks and no final norm
    (LAVIS, `eva_vit.create_eva_vit_g`); timm has it as `eva_giant_patch14_224`.

    Args:
        cfg: section `model`: the keys `vit_*`, `image_*` and `has_qformer`.

    Raises:
        ConfigError: timm has no such backbone, it does not accept the options, it is no plain vision transformer or has
            no such layer or class token, or it cannot divide the image into patches.

    Attributes:
        width: width of the features.
        image_size: side of the square input in pixels (S).
        num_patches: patches of an image.
        num_tokens: features of an image (P): its patches, and the class token where it is kept.
        statistics: what images are normalised by.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        backbone = _backbone(cfg)
        _check_image_size(cfg, backbone)
        backbone.blocks = backbone.blocks[: _feature_layer(cfg, len(backbone.blocks))]
        backbone.norm = nn.Identity()
        backbone.fc_norm = nn.Identity()
        if getattr(backbone, "attn_pool", None) is not None:
            backbone.attn_pool = None
        self.backbone: Any = backbone
        self.width: int = backbone.num_features
        self.image_size = cfg.image_size
        self.num_patches: int = backbone.patch_embed.num_patches
        self.statistics = image_statistics(cfg)
        self._kept = _kept_prefix(cfg, backbone)
        self.num_tokens = self.num_patches + self._kept

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S), uint8 or already normalised -> (N, P, width)."""
        features: Tensor = self.backbone.forward_features(normalize(images, self.statistics).to(self.dtype))
        dropped = self.backbone.num_prefix_tokens - self._kept
        if dropped == 0:
            return features
        patches = features[:, self.backbone.num_prefix_tokens :]
        return torch.cat([features[:, :1], patches], dim=1) if self._kept else patches

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights."""
        return next(self.parameters()).dtype


def build_vision_encoder(cfg: ModelConfig, dtype: torch.dtype | None, device: Any) -> VisionEncoder:
    """The encoder, frozen and in eval mode; with random weights, the same at each call, where no file is named.

    Args:
        cfg: section `model`.
        dtype: number format of the weights; None: that of the file.
        device: device of the weights.

    Raises:
        ConfigError: As for `VisionEncoder`.
        CheckpointError: The file does not fit.
    """
    _warn_of_activation(cfg)
    if cfg.vit_weights is None:
        with seeded_weights():
            encoder = VisionEncoder(cfg)
    else:
        with init_empty_weights(include_buffers=False):
            encoder = VisionEncoder(cfg)
        file = weights_file(cfg.vit_weights)
        state = _backbone_state(model_state(read_checkpoint(file)), encoder, str(file))
        load_strictly(encoder.backbone, state, str(file), dtype=dtype, device=device)
    return encoder.to(device=device, dtype=dtype).requires_grad_(False).eval()


def empty_vision_encoder(cfg: ModelConfig) -> VisionEncoder:
    """An encoder of one block without its weights, which tells the sizes of features; errors as for `VisionEncoder`."""
    options = {key: value for key, value in cfg.vit_args.items() if key != "depth"}
    with init_empty_weights():
        return VisionEncoder(replace(cfg, vit_blocks=1, vit_feature_layer="last", vit_args=options))


def image_statistics(cfg: ModelConfig) -> ChannelStatistics:
    """What images are normalised by: the configuration's, or else the backbone's own; no weight is read.

    Those of a backbone stand in the folder of its weights, where it has a `config.json`, or else in timm's table.

    Raises:
        ConfigError: As for `own_settings`.
    """
    own = own_settings(cfg)
    mean, std = cfg.image_mean or own["mean"], cfg.image_std or own["std"]
    return ChannelStatistics(tuple(map(float, mean)), tuple(map(float, std)))


def own_settings(cfg: ModelConfig) -> dict[str, Any]:
    """How the backbone was built and pre-trained, by timm's names: mean, std, input_size, tag, model_args and more.

    Raises:
        ConfigError: timm has no such backbone, or the folder of weights is another one's.
    """
    architecture, _, tag = cfg.vit_model.partition(".")
    if not timm.is_model(architecture):
        near = get_close_matches(cfg.vit_model.removeprefix("timm/"), timm.list_models(), n=1)
        raise ConfigError(
            f"model.vit_model: timm cannot build '{cfg.vit_model}'; "
            + (f"did you mean '{near[0]}'?" if near else "timm.list_models('*siglip*') names those that it can build")
        )
    tags = timm.models.get_arch_pretrained_cfgs(architecture)
    if tag and cfg.vit_model not in tags:
        raise ConfigError(
            f"model.vit_model: timm knows no weights '{tag}' of {architecture}; {did_you_mean(cfg.vit_model, tags)}"
        )
    settings = (timm.get_pretrained_cfg(cfg.vit_model) or timm.models.PretrainedCfg()).to_dict()
    file = Path(str(cfg.vit_weights)) / "config.json"
    if cfg.vit_weights is None or not file.is_file():
        return settings
    described = read_json(file)
    found = described.get("architecture") if isinstance(described, dict) else None
    if found != architecture:
        what = f"a backbone '{found}'" if found else "no backbone of timm (it names no architecture)"
        raise ConfigError(
            f"model.vit_weights: {file} describes {what}, model.vit_model is '{cfg.vit_model}'; name the folder of "
            "that backbone, as timm publishes it"
        )
    own, arguments = (described.get(key) or {} for key in ("pretrained_cfg", "model_args"))
    if not isinstance(own, dict) or not isinstance(arguments, dict):
        raise ConfigError(f"{file}: pretrained_cfg and model_args should be JSON objects; copy the file again")
    for key in {"mean", "std", "input_size"} & set(own):
        numbers = own[key] if isinstance(own[key], list) else []
        if len(numbers) != len("RGB") or not all(type(n) in (int, float) and 0 <= n < math.inf for n in numbers):
            raise ConfigError(f"{file}: pretrained_cfg.{key} should be three numbers; copy the file again")
    if not all(own.get("std", [1])):
        raise ConfigError(f"{file}: pretrained_cfg.std should be above 0; copy the file again")
    return settings | own | {"model_args": arguments}


def _backbone(cfg: ModelConfig) -> Any:
    """timm's backbone with the configured sizes."""
    own = {"img_size": ("image_size", cfg.image_size), "depth": ("vit_blocks", cfg.vit_blocks)}
    for option, (key, value) in own.items():
        if cfg.vit_args.get(option, value) != value:
            raise ConfigError(f"model.vit_args.{option} contradicts model.{key}, which is {value}; set that instead")
    depth = {} if cfg.vit_blocks is None else {"depth": cfg.vit_blocks}
    described = own_settings(cfg).get("model_args") or {}
    sizes = described | {"img_size": cfg.image_size, **depth, "num_classes": 0} | cfg.vit_args
    try:
        backbone: Any = timm.create_model(cfg.vit_model, pretrained=False, **sizes)
    except Exception as error:  # timm's constructors check little: a wrong value can raise anything
        raise ConfigError(
            f"model.vit_model: timm cannot build '{cfg.vit_model}' with {sizes}: {one_line(error)}; check "
            "model.vit_args, model.image_size and model.vit_blocks, and that it is a vision transformer"
        ) from error
    patches = getattr(backbone, "patch_embed", None)
    if not hasattr(patches, "num_patches") or not {"blocks", "num_prefix_tokens"} <= set(dir(backbone)):
        raise ConfigError(
            f"model.vit_model: '{cfg.vit_model}' is a {type(backbone).__name__}, no plain vision transformer whose "
            "blocks all have the same patches; choose one such as vit_*, deit_*, beit_* or eva*"
        )
    return backbone


def _check_image_size(cfg: ModelConfig, backbone: Any) -> None:
    """Refuse images of which a part is in no patch, but for the size that the backbone was trained with.

    SigLIP has patches of 14 pixels in images of 384, and sees 378 of these.
    """
    side, patch = cfg.image_size, backbone.patch_embed.patch_size
    if side == own_settings(cfg)["input_size"][-1] and side >= max(patch):
        return
    if any(side < each or side % each for each in patch):
        raise ConfigError(
            f"model.image_size: {side} should be a multiple of {patch[0]}, the side of the backbone's patches"
        )


def _feature_layer(cfg: ModelConfig, blocks: int) -> int:
    """Number of the block whose output is the features, from 1."""
    named = dict(zip(FEATURE_LAYERS, (blocks, blocks - 1), strict=True))
    layer = named[cfg.vit_feature_layer] if cfg.vit_feature_layer in named else int(cfg.vit_feature_layer)
    if not 1 <= layer <= blocks:
        raise ConfigError(
            f"model.vit_feature_layer: {cfg.vit_feature_layer}, but '{cfg.vit_model}' has {blocks} blocks here "
            "(model.vit_blocks)"
        )
    return layer


def _kept_prefix(cfg: ModelConfig, backbone: Any) -> int:
    """Tokens in front of the patches that are kept: 1, the class token, or 0."""
    has_class = getattr(backbone, "cls_token", None) is not None
    if cfg.vit_class_token is ClassToken.keep and not has_class:
        raise ConfigError(f"model.vit_class_token: keep, but '{cfg.vit_model}' has no class token; set it to auto")
    kept = cfg.vit_class_token is ClassToken.keep or (cfg.vit_class_token is ClassToken.auto and cfg.has_qformer)
    return int(has_class and kept)


def _warn_of_activation(cfg: ModelConfig) -> None:
    """Say where timm notes that weights were trained with another activation than this backbone's."""
    architecture, tag = cfg.vit_model.partition(".")[0], own_settings(cfg).get("tag")
    name = f"{architecture}.{tag}"
    known = timm.models.get_arch_pretrained_cfgs(architecture).get(name)
    if known and QUICK_GELU in " ".join(known.notes or ()).lower() and QUICK_GELU not in architecture:
        logger.warning(
            "model.vit_model: the weights of %s were trained with QuickGELU and this backbone computes GELU; their "
            "features will be worse than those of timm's *_%s_* of the same size",
            name,
            QUICK_GELU,
        )


def _backbone_state(state: Mapping[str, Tensor], encoder: VisionEncoder, source: str) -> dict[str, Tensor]:
    """The tensors that the encoder uses, the positional embedding resized to its grid.

    Blocks behind the layer of the features, the final norm and the head are ignored.
    """
    wanted = set(encoder.backbone.state_dict())
    if PATCHES not in state or "mask_token" in state:
        state = _in_timms_layout(state, encoder.backbone, source)
    blocks = len(encoder.backbone.blocks)
    beyond = {name for name in state if (block := re.match(r"blocks\.(\d+)\.", name)) and int(block.group(1)) >= blocks}
    unexpected = unexpected_keys(set(state) - beyond, wanted, VIT_UNUSED)
    if unexpected:
        raise CheckpointError(
            f"{source}: unexpected tensors for the vision encoder: {first_few(sorted(unexpected), 3)}"
        )
    used = {name: tensor for name, tensor in state.items() if name in wanted}
    if "pos_embed" in used:
        used["pos_embed"] = _resize_positions(used["pos_embed"], encoder, source)
    return used


def _in_timms_layout(state: Mapping[str, Tensor], backbone: Any, source: str) -> Mapping[str, Tensor]:
    """Weights as OpenCLIP, OpenAI and Meta publish them, under timm's names, by timm's own converter."""
    convert = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    try:
        converted = dict(convert(dict(state), backbone, antialias=False)) if convert else dict(state)
    except Exception as error:  # it expects a layout that it knows
        raise CheckpointError(f"{source}: timm cannot read these weights: {one_line(error)}") from error
    if PATCHES not in converted:
        raise CheckpointError(
            f"{source} is in no layout that timm knows ({first_few(sorted(state), 3)}); take the weights as timm "
            "publishes them, not those for transformers"
        )
    return converted


def _resize_positions(positions: Tensor, encoder: VisionEncoder, source: str) -> Tensor:
    """Interpolate the positional embedding (1, P, width) to the encoder's grid, bicubic without antialiasing."""
    backbone = encoder.backbone
    if positions.shape == backbone.pos_embed.shape:
        return positions
    grid = list(backbone.patch_embed.grid_size)
    logger.info("%s: its positions are resized to %d x %d patches (model.image_size)", source, *grid)
    prefix = 0 if getattr(backbone, "no_embed_class", False) else backbone.num_prefix_tokens
    if math.isqrt(positions.shape[1] - prefix) ** 2 != positions.shape[1] - prefix:
        raise CheckpointError(
            f"{source}: {positions.shape[1]} positions are not those of {prefix} tokens and a square of patches; check "
            "that model.vit_model is the backbone of this file"
        )
    resized: Tensor = resample_abs_pos_embed(
        positions.float(),
        new_size=grid,
        num_prefix_tokens=prefix,
        interpolation="bicubic",
        antialias=False,
    )
    return resized

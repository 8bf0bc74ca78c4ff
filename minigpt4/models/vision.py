"""The frozen vision encoder: a timm backbone without its final norm."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
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
)
from minigpt4.common.errors import CheckpointError, ConfigError, first_few, one_line

VIT_UNUSED = (r"(norm|fc_norm|head)\.", r".*attn\.(k_bias|relative_position_index)$")
"""Final norm and classifier, which come after the features."""


class VisionEncoder(nn.Module):
    """Images -> patch features with the class token in front.

    The published EVA-ViT-G/14 uses 39 of its 40 blocks and no final norm
    (LAVIS, `eva_vit.create_eva_vit_g`); timm has it as `eva_giant_patch14_224`.

    Args:
        name: name of the backbone in timm.
        image_size: side of the square input in pixels (S).
        num_blocks: number of transformer blocks.
        options: further arguments of timm's constructor.

    Raises:
        ConfigError: timm has no such backbone, it does not accept the options, or it cannot divide the image into
            patches.

    Attributes:
        width: width of the patch features.
        num_patches: patches of an image; 0: the backbone does not say.
        num_prefix_tokens: tokens in front of them, such as the class token.
    """

    def __init__(self, name: str, image_size: int, num_blocks: int, options: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        own = {"img_size": ("image_size", image_size), "depth": ("vit_blocks", num_blocks)}
        for option, (key, value) in own.items():
            if (options or {}).get(option, value) != value:
                raise ConfigError(
                    f"model.vit_args.{option} contradicts model.{key}, which is {value}; set that instead"
                )
        sizes = {"img_size": image_size, "depth": num_blocks, "num_classes": 0} | dict(options or {})
        try:
            backbone: Any = timm.create_model(name, pretrained=False, **sizes)
        except Exception as error:  # timm's constructors check little: a wrong value can raise anything
            near = [] if timm.is_model(name) else get_close_matches(name, timm.list_models(), n=1)
            sizes_too = "check model.vit_args, model.image_size and model.vit_blocks"
            remedy = f"did you mean '{near[0]}'?" if near else sizes_too
            raise ConfigError(
                f"model.vit_model: timm cannot build '{name}' with {sizes}: {one_line(error)}; {remedy}"
            ) from error
        patch = getattr(getattr(backbone, "patch_embed", None), "patch_size", (1,))
        if any(image_size < side or image_size % side for side in patch):
            raise ConfigError(
                f"model.image_size: {image_size} should be a multiple of {patch[0]}, the side of the backbone's patches"
            )
        backbone.norm = nn.Identity()
        backbone.fc_norm = nn.Identity()
        self.backbone: Any = backbone
        self.width: int = backbone.num_features
        self.image_size = image_size
        self.num_patches: int = getattr(getattr(backbone, "patch_embed", None), "num_patches", 0)
        self.num_prefix_tokens: int = getattr(backbone, "num_prefix_tokens", 0)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, P, width)."""
        features: Tensor = self.backbone.forward_features(images.to(self.dtype))
        return features

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights."""
        return next(self.parameters()).dtype


def build_vision_encoder(
    name: str,
    image_size: int,
    num_blocks: int,
    options: Mapping[str, Any],
    weights: str | None,
    dtype: torch.dtype | None,
    device: Any,
) -> VisionEncoder:
    """The encoder, frozen and in eval mode.

    Args:
        name: name of the backbone in timm.
        image_size: side of the square input in pixels (S).
        num_blocks: number of transformer blocks.
        options: further arguments of timm's constructor.
        weights: published file; None: random weights, the same at each call.
        dtype: number format of the weights; None: that of the file.
        device: device of the weights.

    Raises:
        ConfigError: As for `VisionEncoder`.
        CheckpointError: The file does not fit.
    """
    if weights is None:
        with seeded_weights():
            encoder = VisionEncoder(name, image_size, num_blocks, options)
    else:
        with init_empty_weights(include_buffers=False):
            encoder = VisionEncoder(name, image_size, num_blocks, options)
        state = _backbone_state(model_state(read_checkpoint(weights)), encoder, num_blocks, weights)
        load_strictly(encoder.backbone, state, weights, dtype=dtype, device=device)
    return encoder.to(device=device, dtype=dtype).requires_grad_(False).eval()


def empty_vision_encoder(name: str, image_size: int, options: Mapping[str, Any]) -> VisionEncoder:
    """An encoder of one block without its weights, which tells the sizes of features.

    Arguments and errors as for `VisionEncoder`.
    """
    with init_empty_weights():
        return VisionEncoder(name, image_size, 1, {key: value for key, value in options.items() if key != "depth"})


def _backbone_state(
    state: Mapping[str, Tensor], encoder: VisionEncoder, num_blocks: int, source: str
) -> dict[str, Tensor]:
    """The tensors that the encoder uses, the positional embedding resized to its grid.

    Blocks beyond `num_blocks`, the final norm and the head are ignored.
    """
    wanted = set(encoder.backbone.state_dict())
    beyond = {
        name for name in state if (block := re.match(r"blocks\.(\d+)\.", name)) and int(block.group(1)) >= num_blocks
    }
    unexpected = unexpected_keys(set(state) - beyond, wanted, VIT_UNUSED)
    if unexpected:
        raise CheckpointError(
            f"{source}: unexpected tensors for the vision encoder: {first_few(sorted(unexpected), 3)}"
        )
    used = {name: tensor for name, tensor in state.items() if name in wanted}
    if "pos_embed" in used:
        used["pos_embed"] = _resize_positions(used["pos_embed"], encoder)
    return used


def _resize_positions(positions: Tensor, encoder: VisionEncoder) -> Tensor:
    """Interpolate the positional embedding (1, P, width) to the encoder's grid, bicubic without antialiasing."""
    if positions.shape == encoder.backbone.pos_embed.shape:
        return positions
    resized: Tensor = resample_abs_pos_embed(
        positions.float(),
        new_size=list(encoder.backbone.patch_embed.grid_size),
        num_prefix_tokens=encoder.backbone.num_prefix_tokens,
        interpolation="bicubic",
        antialias=False,
    )
    return resized

"""Patches joined four by four: what MiniGPT-v2 has in place of a Q-Former (arXiv:2310.09478, section 2.1)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from minigpt4.common.errors import ConfigError
from minigpt4.models.qformer import LN_VISION_EPS
from minigpt4.models.vision import VisionEncoder

MERGED = 4
"""Neighbouring patches, in raster order, that make one embedding of an image."""


class MergedPatches(nn.Module):
    """Normalised patches without the class token, each `MERGED` neighbours joined; it has no weights.

    `ln_vision` has weight 1 and bias 0 here: the published checkpoints were trained with it as it was made, and no file
    holds it.

    Args:
        vision_width: width of the image features.
        num_prefix_tokens: tokens in front of the patches, which are dropped.
    """

    def __init__(self, vision_width: int, num_prefix_tokens: int) -> None:
        super().__init__()
        self.width = MERGED * vision_width
        self.num_prefix_tokens = num_prefix_tokens

    def forward(self, features: Tensor) -> Tensor:
        """Image features (N, P, vision_width) -> (N, patches / MERGED, width), normalised in float32."""
        normed = F.layer_norm(features.float(), features.shape[-1:], eps=LN_VISION_EPS).to(features.dtype)
        return normed[:, self.num_prefix_tokens :].unflatten(1, (-1, MERGED)).flatten(2)


def build_merged_patches(vision: VisionEncoder) -> MergedPatches:
    """The bridge behind this encoder.

    Raises:
        ConfigError: Its patches cannot be divided into groups of `MERGED`.
    """
    merged_tokens(vision)
    return MergedPatches(vision.width, vision.num_prefix_tokens)


def merged_tokens(vision: VisionEncoder) -> int:
    """Embeddings of an image; errors as for `build_merged_patches`."""
    if vision.num_patches == 0 or vision.num_patches % MERGED:
        raise ConfigError(
            f"model.image_size: at side {vision.image_size}, an image has {vision.num_patches or 'no'} patches; "
            f"without a Q-Former (model.has_qformer: false) {MERGED} neighbours are joined, so choose a side with a "
            f"multiple of {MERGED} patches"
        )
    return vision.num_patches // MERGED

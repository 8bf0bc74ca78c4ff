"""Neighbouring patches joined: what MiniGPT-v2 has in place of a Q-Former (arXiv:2310.09478, section 2.1)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from minigpt4.common.errors import ConfigError
from minigpt4.models.qformer import LN_VISION_EPS
from minigpt4.models.vision import VisionEncoder


class MergedPatches(nn.Module):
    """Normalised patches, each `joined` neighbours in raster order joined; it has no weights.

    `ln_vision` has weight 1 and bias 0 here: the published checkpoints were trained with it as it was made, and no file
    holds it.

    Args:
        vision_width: width of the image features.
        joined: neighbours that make one embedding of an image; 1: each feature is one, as in LLaVA.
    """

    def __init__(self, vision_width: int, joined: int) -> None:
        super().__init__()
        self.width = joined * vision_width
        self.joined = joined

    def forward(self, features: Tensor) -> Tensor:
        """Image features (N, P, vision_width) -> (N, P / joined, width), normalised in float32."""
        normed = F.layer_norm(features.float(), features.shape[-1:], eps=LN_VISION_EPS).to(features.dtype)
        return normed.unflatten(1, (-1, self.joined)).flatten(2)


def build_merged_patches(vision: VisionEncoder, joined: int) -> MergedPatches:
    """The bridge behind this encoder.

    Args:
        vision: the encoder.
        joined: as for `MergedPatches`.

    Raises:
        ConfigError: Its patches cannot be divided into groups of `joined`.
    """
    merged_tokens(vision, joined)
    return MergedPatches(vision.width, joined)


def merged_tokens(vision: VisionEncoder, joined: int) -> int:
    """Embeddings of an image; arguments and errors as for `build_merged_patches`."""
    if vision.num_tokens % joined:
        raise ConfigError(
            f"model.image_size: at side {vision.image_size}, an image has {vision.num_tokens} patches; without a "
            f"Q-Former (model.has_qformer: false) {joined} neighbours are joined (model.joined_patches), so choose a "
            f"side with a multiple of {joined} patches, or join fewer"
        )
    return vision.num_tokens // joined

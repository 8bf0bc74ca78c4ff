"""Features of images that are remembered, within a bound."""

from __future__ import annotations

import torch
from torch import Tensor

from minigpt4.serve.image_features import ENCODED_AT_ONCE, ImageFeatures, image_key

BYTES = 4 * 6
"""Features of one image below: six numbers in float32."""


def images(*levels: int) -> list[Tensor]:
    return [torch.full((3, 2, 2), level, dtype=torch.uint8) for level in levels]


class Encoder:
    """Remembers the sizes of its batches; features are the image's first value, six times."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, batch: Tensor) -> Tensor:
        self.batches.append(len(batch))
        return batch[:, 0, 0, 0].float()[:, None, None].expand(-1, 2, 3)


def levels_of(features: ImageFeatures, *levels: int) -> list[float]:
    wanted = images(*levels)
    return [float(one[0, 0]) for one in features.of(wanted, [image_key(image) for image in wanted])]


def test_the_longest_unused_image_is_forgotten() -> None:
    encoder = Encoder()
    features = ImageFeatures(encoder, 2 * BYTES)
    assert levels_of(features, 1, 2, 1) == [1, 2, 1] and encoder.batches == [2]
    assert levels_of(features, 1) == [1] and encoder.batches == [2]
    assert levels_of(features, 3) == [3]  # 2 is forgotten
    assert levels_of(features, 1) == [1] and encoder.batches == [2, 1]
    assert levels_of(features, 2) == [2] and encoder.batches == [2, 1, 1]
    assert features.bytes == 2 * BYTES
    assert (features.hits, features.misses) == (3, 4)


def test_more_images_than_may_be_kept_are_answered_all_the_same() -> None:
    encoder = Encoder()
    many = list(range(2 * ENCODED_AT_ONCE + 1))
    features = ImageFeatures(encoder, BYTES)
    assert levels_of(features, *many) == many
    assert encoder.batches == [ENCODED_AT_ONCE, ENCODED_AT_ONCE, 1]
    assert features.bytes == BYTES
    assert levels_of(ImageFeatures(encoder, 0), 5, 5) == [5, 5]


def test_images_differ_by_their_pixels_and_not_by_their_layout() -> None:
    first, second = images(7, 8)
    assert image_key(first) != image_key(second)
    assert image_key(first) == image_key(first.movedim(0, -1).contiguous().movedim(-1, 0))

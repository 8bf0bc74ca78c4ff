"""Features of images, remembered by content: the next question about an image does not encode it again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minigpt4.processors.image import stack_images

ENCODED_AT_ONCE = 8
"""Images that go through the encoders together."""


class ImageFeatures:
    """The frozen encoders' output for images, the latest ones in memory.

    Args:
        encode: images (N, 3, S, S) -> features (N, Q, width of the queries).
        max_bytes: most memory for what is kept; the images that were not asked about for longest are forgotten.

    Attributes:
        hits: images whose features were known.
        misses: images that were encoded.
        bytes: memory of what is kept.
    """

    def __init__(self, encode: Callable[[Tensor], Tensor], max_bytes: int) -> None:
        self.hits = 0
        self.misses = 0
        self.bytes = 0
        self._encode = encode
        self._max_bytes = max_bytes
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()

    def of(self, images: Sequence[Tensor], keys: Sequence[bytes]) -> list[Tensor]:
        """Features of each image, (Q, width of the queries).

        Args:
            images: (3, S, S) each.
            keys: `image_key` of each.
        """
        found = {key: self._kept[key] for key in keys if key in self._kept}
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in found}
        self.hits += len(keys) - len(new)
        self.misses += len(new)
        names = list(new)
        for start in range(0, len(names), ENCODED_AT_ONCE):
            some = names[start : start + ENCODED_AT_ONCE]
            encoded = self._encode(stack_images([new[key] for key in some]))
            # A row of its own each: a view would keep the whole batch in memory.
            found |= {key: features.clone() for key, features in zip(some, encoded, strict=True)}
        for key in keys:
            self._keep(key, found[key])
        return [found[key] for key in keys]

    def _keep(self, key: bytes, features: Tensor) -> None:
        if key not in self._kept:
            self.bytes += features.nbytes
        self._kept[key] = features
        self._kept.move_to_end(key)
        while self.bytes > self._max_bytes:
            self.bytes -= self._kept.popitem(last=False)[1].nbytes


class SentImage:
    """An image of questions to the engine: its pixels until they are encoded, from then on its features.

    Args:
        pixels: as `LoadedModel.pixels` makes them, (3, S, S).

    Attributes:
        key: what identifies it.
        encoded: whether its content are features.
        content: its pixels, (3, S, S), or its features, (Q, width of the queries).
    """

    def __init__(self, pixels: Tensor) -> None:
        self.key = image_key(pixels)
        self.encoded = False
        self.content = pixels.clone()  # a view would keep the other images in memory


def image_key(image: Tensor) -> bytes:
    """What identifies an image (3, S, S) by its pixels."""
    return hashlib.blake2b(image.contiguous().view(torch.uint8).numpy().data, digest_size=16).digest()

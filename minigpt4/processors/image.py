"""Pictures -> normalised tensors."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import v2

from minigpt4.common.errors import DataError
from minigpt4.common.registry import processors

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@processors.register("blip2_image_train")
@processors.register("blip2_image_eval")
class ImageProcessor:
    """Resize to a square, bicubic, and normalise by CLIP's statistics.

    Training and evaluation are the same on purpose: nothing here is random, so the features of a frozen encoder can
    be computed once.

    Args:
        image_size: Side in pixels (S).
    """

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size
        self.transform = v2.Compose(
            [
                v2.Resize((image_size, image_size), interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(CLIP_MEAN, CLIP_STD),
            ]
        )

    def __call__(self, image: Image.Image) -> Tensor:
        """A picture of any mode -> (3, S, S) float32."""
        tensor: Tensor = self.transform(image.convert("RGB"))
        return tensor


def open_image(file: str | Path | BinaryIO, name: str = "") -> Image.Image:
    """The picture in a file as RGB, turned upright by its EXIF orientation.

    Args:
        file: Its path, or the opened file.
        name: What messages call it; its path where not given.

    Raises:
        DataError: The file is missing, no picture, or broken; the message names it.
    """
    name = name or str(file)
    try:
        with Image.open(file) as image:
            upright: Image.Image = ImageOps.exif_transpose(image)
            return upright.convert("RGB")
    except FileNotFoundError as error:
        raise DataError(f"image {name} does not exist") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"image {name} cannot be read: {error}") from error

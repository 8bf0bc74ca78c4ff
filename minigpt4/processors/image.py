"""Pictures -> tensors for the vision encoder."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from minigpt4.common.errors import DataError
from minigpt4.common.registry import processors
from minigpt4.processors.normalise import normalise
from minigpt4.processors.pixels import plain_pixels, quick_pixels, quick_pixels_of


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

    def __call__(self, image: Image.Image) -> Tensor:
        """A picture of any mode -> (3, S, S) float32."""
        return normalise(plain_pixels(image, self.image_size))


def load_picture(path: str | Path, processor: Callable[[Image.Image], Tensor]) -> Tensor:
    """A picture's file as a processor prepares it.

    Args:
        path: Of the picture.
        processor: Picture -> (3, S, S).

    Returns:
        Of an `ImageProcessor`: (3, S, S) uint8, a quarter of the bytes to hand on; `normalise` makes of it what the
        processor does, within one grey level. Of any other: what it makes of the picture.

    Raises:
        DataError: The file is missing, no picture, or broken; the message names it.
    """
    if type(processor) is not ImageProcessor:  # a subclass may do more than this knows of
        return processor(open_image(path))
    pixels = quick_pixels(path, processor.image_size)
    return plain_pixels(open_image(path), processor.image_size) if pixels is None else pixels


def decode_picture(data: bytes, name: str, processor: Callable[[Image.Image], Tensor]) -> Tensor:
    """What `load_picture` gives, of a picture that was read already; `name` is for messages."""
    pixels = quick_pixels_of(data, processor.image_size) if type(processor) is ImageProcessor else None
    if pixels is not None:
        return pixels
    image = open_image(io.BytesIO(data), name)
    return plain_pixels(image, processor.image_size) if type(processor) is ImageProcessor else processor(image)


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
    except UnidentifiedImageError as error:  # its message names a buffer, not the picture
        raise DataError(f"image {name} cannot be read: it is no picture, or its beginning is damaged") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"image {name} cannot be read: {error}") from error

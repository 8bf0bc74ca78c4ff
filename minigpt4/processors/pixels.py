"""A picture's file -> a square of grey levels: the quick way for most photographs, Pillow's for everything else.

The two agree within one grey level, but for about one value in ten million, which is two off. Pillow's decoder and
torchvision's are both libjpeg-turbo, set alike, and give the same bytes; torch's resizing of uint8 is Pillow's
algorithm, rounding between the passes too, with 16-bit weights in place of Pillow's 22-bit ones.
"""

from __future__ import annotations

from pathlib import Path

import PIL
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from minigpt4.processors.jpeg import JpegHeader, read_jpeg_header

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # torchvision has announced a release without it; Pillow then does all the work
    decode_jpeg = None

MIN_SHRINKING = 1.4
"""Weights grow as a picture shrinks less, and torch's rounding with them: below this two grey levels are common."""
VERTICAL_FIRST = int(PIL.__version__.split(".")[0]) >= 13
"""Since that release Pillow resizes tall pictures along their height first; before, no picture."""


def plain_pixels(image: Image.Image, size: int) -> Tensor:
    """Resize a picture of any mode by Pillow, bicubic: (3, S, S) uint8."""
    square = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    pixels: Tensor = pil_to_tensor(square)
    return pixels


def quick_pixels(path: str | Path, size: int) -> Tensor | None:
    """Decode and resize a photograph by libjpeg-turbo and torch, without Pillow.

    Args:
        path: Of the picture.
        size: Side of the square (S).

    Returns:
        (3, S, S) uint8, as `plain_pixels` up to rounding; None where the file cannot be read, or is no upright
        colour or grey JPEG distinctly larger than the square: then Pillow is to be asked, also for what is wrong.
    """
    try:
        return quick_pixels_of(Path(path).read_bytes(), size)
    except OSError:
        return None


def quick_pixels_of(data: bytes, size: int) -> Tensor | None:
    """The same for what a picture's file holds."""
    header = read_jpeg_header(data)
    if decode_jpeg is None or header is None or not _suits(header, size):
        return None
    try:
        picture = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    except RuntimeError:
        return None
    return _shrink(picture, size)


def _suits(header: JpegHeader, size: int) -> bool:
    largest = Image.MAX_IMAGE_PIXELS
    return (
        not header.oriented
        and header.components in (1, 3)
        and min(header.width, header.height) >= MIN_SHRINKING * size
        and (largest is None or header.width * header.height <= largest)
    )


def _shrink(picture: Tensor, size: int) -> Tensor:
    """(3, H, W) -> (3, S, S), uint8, its two passes in the order that Pillow takes them in."""
    _, height, width = picture.shape
    pixels = picture.movedim(0, -1)[None].movedim(-1, 1)  # picture[None] would not be known as channels_last
    if VERTICAL_FIRST and height - size > 2 * (width - size):
        pixels = _bicubic(pixels, size, width)
    return _bicubic(pixels, size, size)[0]


def _bicubic(pixels: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(pixels, size=(height, width), mode="bicubic", antialias=True)

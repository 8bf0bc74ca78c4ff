"""One image in every form that users have."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from tests.processors.damaged import saved
from tests.processors.photos import draw_photo

SIZE = (150, 112)


def _photo(mode: str = "RGB") -> Image.Image:
    return draw_photo(0, *SIZE).convert(mode)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _half_clear(mode: str) -> Image.Image:
    """Black behind its transparent half, as most programs store it."""
    image = _photo("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, SIZE[0] // 2, SIZE[1]))
    return image.convert(mode)


def _palette_with_clear_entry() -> bytes:
    return saved(_photo().quantize(16), "PNG", transparency=0)


def _animation() -> bytes:
    frames = [_photo().quantize(32), Image.new("RGB", SIZE, "red").quantize(32)]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:])


def _deep(dtype: str) -> Image.Image:
    return Image.fromarray(np.linspace(0, 60_000, SIZE[0] * SIZE[1]).reshape(SIZE[1], SIZE[0]).astype(dtype))


def _mpo() -> bytes:
    stream = io.BytesIO()
    _photo().save(stream, "MPO", save_all=True, append_images=[Image.new("RGB", SIZE, "red")])
    return stream.getvalue()


FORMS: dict[str, Callable[[], bytes]] = {
    "photo.jpg": lambda: saved(_photo(), "JPEG", quality=90),
    "progressive.jpg": lambda: saved(_photo(), "JPEG", progressive=True),
    "grey.jpg": lambda: saved(_photo("L"), "JPEG"),
    "cmyk.jpg": lambda: saved(_photo("CMYK"), "JPEG"),
    "turned.jpg": lambda: saved(_photo(), "JPEG", exif=_exif(6)),
    "mirrored.jpg": lambda: saved(_photo(), "JPEG", exif=_exif(2)),
    "small.jpg": lambda: saved(_photo().resize((40, 30)), "JPEG"),
    "mpo.jpg": _mpo,
    "rgb.png": lambda: saved(_photo(), "PNG"),
    "rgba.png": lambda: saved(_half_clear("RGBA"), "PNG"),
    "grey_alpha.png": lambda: saved(_half_clear("LA"), "PNG"),
    "palette.png": lambda: saved(_photo().quantize(64), "PNG"),
    "palette_clear.png": _palette_with_clear_entry,
    "grey.png": lambda: saved(_photo("L"), "PNG"),
    "bitmap.png": lambda: saved(_photo("1"), "PNG"),
    "grey16.png": lambda: saved(_deep("uint16"), "PNG"),
    "turned.png": lambda: saved(_photo(), "PNG", exif=_exif(8)),
    "grey32.tif": lambda: saved(_deep("int32"), "TIFF"),
    "float.tif": lambda: saved(_deep("float32"), "TIFF"),
    "cmyk.tif": lambda: saved(_photo("CMYK"), "TIFF"),
    "animated.gif": _animation,
    "photo.webp": lambda: saved(_photo(), "WEBP", lossless=True),
    "clear.webp": lambda: saved(_half_clear("RGBA"), "WEBP", lossless=True),
    "photo.bmp": lambda: saved(_photo(), "BMP"),
    "called_jpg_is.jpg": lambda: saved(_photo(), "PNG"),
}
"""File name -> its content."""

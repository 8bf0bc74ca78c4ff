"""Whatever a user has for a picture -> an upright RGB picture, or one line that says what is wrong with it."""

from __future__ import annotations

import io
import sys
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from minigpt4.common.errors import DataError

MAX_PIXELS = 100_000_000
"""Of a picture; a few kilobytes can unpack to gigabytes."""
FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""File formats read; not those that Pillow hands to another program (EPS)."""
EXPECTED = "a path, the bytes of a picture file, a PIL image, or an array"
_BACKGROUND = (255, 255, 255)
_DIMS, _CHANNELS = 3, (1, 3, 4)
_GREYS = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def to_picture(value: Any, name: str | None = None) -> Image.Image:
    """An upright RGB picture.

    The first frame of an animation; 16-bit greys are scaled down to 8. What is transparent becomes white: logos,
    diagrams and screenshots with transparency are drawn for a white page, and the colour that such a file keeps under
    its transparent pixels is mostly black and never meant to be seen.

    Args:
        value: A path; bytes or an open binary file; a PIL image; an array (numpy (H, W), (H, W, 1|3|4), torch also
            (1|3|4, H, W); uint8, or floats from 0 to 1).
        name: What messages call it; the path where not given.

    Raises:
        DataError: There is no such file, or it is no picture, broken, empty, too large or of the wrong type.
    """
    name = name or (str(value) if isinstance(value, str | Path) else "given")
    if isinstance(value, Image.Image):
        return _flattened(value, name)
    if isinstance(value, np.ndarray) or _is_tensor(value):
        return _flattened(_from_array(value, name), name)
    return _flattened(_opened(value, name), name)


def _is_tensor(value: Any) -> bool:
    return "torch" in sys.modules and isinstance(value, sys.modules["torch"].Tensor)


def _opened(value: Any, name: str) -> Image.Image:
    file: BinaryIO | Path
    if isinstance(value, str | Path):
        file = Path(value)
        if not file.is_file():
            raise DataError(f"image {name} " + ("is a folder" if file.is_dir() else "does not exist"))
        empty = file.stat().st_size == 0
    elif isinstance(value, bytes | bytearray | memoryview):
        file, empty = io.BytesIO(value), not len(value)
    elif hasattr(value, "read"):
        content = value.read()
        file, empty = io.BytesIO(content), not content
    else:
        raise DataError(f"image {name} is of type {type(value).__name__}; expected {EXPECTED}")
    if empty:
        raise DataError(f"image {name} is empty (0 bytes)")
    Image.init()
    try:
        with warnings.catch_warnings():  # the limit below is ours, and Pillow's remarks on odd files help nobody here
            warnings.simplefilter("ignore")
            return Image.open(file, formats=[known for known in FORMATS if known in Image.OPEN])
    except Exception as error:  # damaged headers make Pillow raise nearly anything
        raise DataError(f"image {name} cannot be read: {_reason(error, name)}") from error


def _reason(error: Exception, name: str) -> str:
    text = str(error)
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is no picture, or one of a kind that is not read; use JPEG, PNG, WebP, GIF, BMP or TIFF"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {MAX_PIXELS // 10**6} million pixels; make it smaller"
    return text or type(error).__name__


def _flattened(image: Image.Image, name: str) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(
            f"image {name} cannot be read: it has {width} x {height} pixels, more than {MAX_PIXELS // 10**6} million; "
            "make it smaller"
        )
    if not width or not height:
        raise DataError(f"image {name} cannot be read: it has {width} x {height} pixels")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
            return _on_white(_as_bytes(_upright(image)))
    except Exception as error:  # as above: decoders of damaged data
        raise DataError(f"image {name} cannot be read: {_reason(error, name)}") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned: Image.Image = ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data; the picture itself was read
        return image
    return turned


def _as_bytes(image: Image.Image) -> Image.Image:
    """A picture of more than 8 bits a channel as 8 bits; Pillow itself would cut values above 255 off."""
    if image.mode not in _GREYS:
        return image
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    highest = values.max()
    if image.mode != "F" or highest > 1:
        full = 255 if highest <= 255 and image.mode in ("I", "F") else max(65535, highest)
        values = values / full
    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    seen = image.convert("RGBA")
    white = Image.new("RGB", seen.size, _BACKGROUND)
    white.paste(seen, mask=seen.getchannel("A"))
    return white


def _from_array(value: Any, name: str) -> Image.Image:
    array: np.ndarray[Any, Any]
    if isinstance(value, np.ndarray):
        array = value
    else:
        array = value.detach().cpu().float().numpy() if value.is_floating_point() else value.detach().cpu().numpy()
        if array.ndim == _DIMS and array.shape[0] in _CHANNELS:
            array = array.transpose(1, 2, 0)
    channels = array.shape[2] if array.ndim == _DIMS else 1
    if array.ndim not in (2, _DIMS) or channels not in _CHANNELS or not array.size:
        raise DataError(
            f"image {name} is an array of shape {tuple(value.shape)}; expected (height, width) or (height, width, 3)"
        )
    if array.dtype.kind == "f" and np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1:
        array = (array * 255).round().astype(np.uint8)
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    if array.dtype != np.uint8:
        raise DataError(
            f"image {name} is an array of {array.dtype} from {array.min()} to {array.max()}; expected uint8, or floats "
            "from 0 to 1"
        )
    return Image.fromarray(np.ascontiguousarray(array.squeeze(2) if channels == 1 and array.ndim == _DIMS else array))

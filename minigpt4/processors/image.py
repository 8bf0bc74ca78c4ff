"""Whatever a user has for an image -> upright RGB -> the (3, S, S) tensor of the vision encoder.

There is one decoder. Training, evaluation, data checks, curation, chat, the API, `generate` and thumbnails all open
images by `decode_image`, so that a model is asked about the same pixels that it was trained on.
"""

from __future__ import annotations

import io
import os
import stat
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import PIL
from PIL import ExifTags, Image, ImageOps

from minigpt4.common.errors import DataError
from minigpt4.common.registry import processors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
"""An image, upright, (H, W, 3) uint8 RGB."""

# Pillow warns of odd files that it reads all the same, and of sizes within our limit. One filter for the process, since
# `catch_warnings` around each image is not safe in threads: it can leave all later warnings ignored.
warnings.filterwarnings("ignore", module=r"PIL\.")

MAX_PIXELS = 100_000_000
"""Largest image in pixels; a file of a few kilobytes can unpack to gigabytes."""
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class ChannelStatistics(NamedTuple):
    """Mean and deviation of red, green and blue, on a scale from 0 to 1, that an encoder's images are normalised by."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        mean, std = ([f"{value:.8g}" for value in values] for values in self)
        return f"mean {', '.join(mean)}, deviation {', '.join(std)}"


CLIP = ChannelStatistics(CLIP_MEAN, CLIP_STD)
FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's formats that are read; not those that it hands to another program (EPS)."""
_PLAIN = (("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGB"), ("PNG", "L"))
"""Formats and Pillow's modes of files that hold 8-bit grey or RGB and nothing else."""
_ACCEPTED = "a path, the bytes of an image file, a PIL image, or an array"
_WHITE = (255, 255, 255)
_COLOUR_NDIM = 3
"""Dimensions of an array with a channel axis."""
_CHANNELS = (1, 3, 4)
"""Lengths of a channel axis: grey, RGB, RGBA."""
_WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
"""Pillow's modes of more than 8 bits a channel."""
_MIN_SHRINK = 1.4
"""Shrinking factor below which torch's 16-bit bicubic weights differ from Pillow's by more than a grey level."""
_VERTICAL_FIRST = int(PIL.__version__.split(".")[0]) >= 13
"""Since that release Pillow resizes tall images along their height first."""


@processors.register("blip2_image_train")
@processors.register("blip2_image_eval")
class ImageProcessor:
    """Resizes to a square, bicubic, the same way in training and evaluation.

    Nothing here is random, so the features of a frozen encoder can be computed once. Any other registered image
    processor is called in the same way, and may return normalised floats instead.

    Args:
        image_size: side in pixels (S).
    """

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size
        jpeg_decoder()  # imported here, once, and not by each worker that the processor is handed to

    def __call__(self, source: Any, name: str | None = None) -> Tensor:
        """An image in any form that `decode_image` takes -> (3, S, S) uint8, for `normalize`.

        Raises:
            DataError: As for `decode_image`.
        """
        return _resize(decode_image(source, name), self.image_size)


def open_image(source: Any, name: str | None = None) -> Image.Image:
    """As `decode_image`, as a PIL image in mode RGB."""
    return Image.fromarray(decode_pixels(source, name))


def decode_image(source: Any, name: str | None = None) -> Tensor:
    """As `decode_pixels`, as a tensor, (H, W, 3) uint8."""
    import torch

    return torch.from_numpy(decode_pixels(source, name))


def decode_pixels(source: Any, name: str | None = None) -> Pixels:
    """The pixels of an image, upright, (H, W, 3) uint8 RGB.

    The first frame of an animation; 16-bit grey is scaled to 8 bits. Transparent pixels become white: logos, diagrams
    and screenshots are drawn for a white page, and the colour stored under transparent pixels is mostly black and never
    meant to be seen.

    Args:
        source: a path; bytes or an open binary file; a PIL image; an array (numpy (H, W) or (H, W, 1|3|4), torch also
            (1|3|4, H, W); uint8, or floats from 0 to 1).
        name: name for messages; None: the path.

    Raises:
        DataError: The file is missing, is not an image, or is broken, empty, too large or of the wrong type.
    """
    name = name or (str(source) if isinstance(source, str | Path) else "given")
    data = b""
    if isinstance(source, Image.Image):
        image = source
    elif isinstance(source, np.ndarray) or _is_tensor(source):
        image = _from_array(source, name)
    else:
        data = image_bytes(source, name)
        image = _open_header(data, name)
    width, height = image.size
    if not width or not height:
        raise DataError(f"image {name} cannot be read: it has {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise DataError(
            f"image {name} cannot be read: it has {width} x {height} pixels, more than {MAX_PIXELS // 10**6} million; "
            "make it smaller"
        )
    pixels = _quick_jpeg(data, image)
    return _decode(image, name) if pixels is None else pixels


def is_plain(path: Path) -> bool:
    """Whether other programs that use Pillow decode a file as `decode_pixels` does.

    They may read fewer formats, and do otherwise with transparent pixels or more than 8 bits a channel.

    Raises:
        DataError: The file is missing, or is not an image.
    """
    image = _open_header(image_bytes(path, str(path)), str(path))
    return (image.format, image.mode) in _PLAIN and not image.has_transparency_data


def image_bytes(source: Any, name: str) -> bytes:
    """The content of an image file, given by its path, open, or as bytes.

    Raises:
        DataError: It does not exist, cannot be read or is empty; the message has `name`.
    """
    if not isinstance(source, str | Path | bytes | bytearray | memoryview) and not hasattr(source, "read"):
        raise DataError(f"image {name} is of type {type(source).__name__}; expected {_ACCEPTED}")
    try:
        if isinstance(source, str | Path):
            mode = os.stat(source).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a pipe or a device might never end
                raise OSError("it is not a regular file")
            data = Path(source).read_bytes()
        else:
            data = source.read() if hasattr(source, "read") else bytes(source)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"image {name} does not exist") from error
    except IsADirectoryError as error:
        raise DataError(f"image {name} is a folder") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte, or a closed file
        raise DataError(f"image {name} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not data:
        raise DataError(f"image {name} is empty (0 bytes)")
    return data


def normalize(pixels: Tensor, statistics: ChannelStatistics = CLIP) -> Tensor:
    """Scale images to [0, 1] and normalise them, on the device they are on.

    Images travel as uint8, a quarter of the bytes, and become floats as late as here.

    Args:
        pixels: (..., 3, S, S) uint8; floats, which a processor normalised already, are returned unchanged.
        statistics: those of the vision encoder; the published ones have CLIP's.

    Returns:
        (..., 3, S, S) float32, channels last in memory (`stack_images`), or `pixels` itself.
    """
    import torch

    if pixels.dtype is not torch.uint8:
        return pixels
    rows = pixels.movedim(-3, -1).flatten(-2)
    scale, shift = _scale_and_shift(pixels.device, pixels.shape[-1], statistics)
    return torch.addcmul(shift, rows, scale).unflatten(-1, (-1, 3)).movedim(-1, -3)


def stack_images(images: Sequence[Tensor]) -> Tensor:
    """(3, S, S) each -> (N, 3, S, S).

    Decoding and resizing leave the three channels of a pixel side by side in memory. The batch keeps this layout
    (`torch.channels_last`): separating them would take a fifth of the time of resizing, and the encoders are faster
    without it.
    """
    import torch

    return torch.stack([image.movedim(0, -1) for image in images]).movedim(-1, 1)


@lru_cache(maxsize=1)
def jpeg_decoder() -> Callable[[bytes], Pixels] | None:
    """torchvision's decoder of RGB and grey JPEG files; None: there is none, and Pillow decodes everything.

    Both decode by libjpeg-turbo and return the same bytes, torchvision in half the time.
    """
    try:
        import torch
        from torchvision.io import ImageReadMode, decode_jpeg
    except ImportError:  # torchvision has announced a release without it
        return None

    def decode(data: bytes) -> Pixels:
        pixels: Tensor = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
        array: Pixels = pixels.movedim(0, -1).numpy()
        return array

    return decode


def _open_header(data: bytes, name: str) -> Image.Image:
    """The image with its header read, its pixels not yet."""
    Image.init()
    try:
        return Image.open(io.BytesIO(data), formats=[known for known in FORMATS if known in Image.OPEN])
    except Exception as error:  # damaged headers make Pillow raise nearly anything
        raise _unreadable(name, error) from error


def _quick_jpeg(data: bytes, image: Image.Image) -> Pixels | None:
    """The pixels of an upright RGB or grey JPEG file by `jpeg_decoder`; None: leave it, also if damaged, to Pillow.

    A command that has not imported torch does not do so for this: importing takes as long as decoding a thousand files.

    Args:
        data: content of the file; empty where there is none.
        image: its header.
    """
    if "torch" not in sys.modules or not data or image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return None
    try:
        decode = jpeg_decoder()
        upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        return decode(data) if decode and upright else None
    except Exception:  # damaged EXIF data, or damaged pixels
        return None


def _is_tensor(value: Any) -> bool:
    return "torch" in sys.modules and isinstance(value, sys.modules["torch"].Tensor)


def _decode(image: Image.Image, name: str) -> Pixels:
    """A PIL image of any mode -> (H, W, 3) uint8."""
    try:
        image.load()
        return np.array(_on_white(_to_8_bits(_upright(image))))
    except Exception as error:  # decoders of damaged data raise nearly anything
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> DataError:
    reason = str(error) or type(error).__name__
    if isinstance(error, Image.UnidentifiedImageError):
        reason = "it is not an image, or of a kind that is not supported; use JPEG, PNG, WebP, GIF, BMP or TIFF"
    elif isinstance(error, Image.DecompressionBombError):
        reason = f"it has more than {MAX_PIXELS // 10**6} million pixels; make it smaller"
    return DataError(f"image {name} cannot be read: {reason}")


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned: Image.Image = ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data; the pixels were read
        return image
    return turned


def _to_8_bits(image: Image.Image) -> Image.Image:
    """An image of more than 8 bits a channel scaled to 8 bits; Pillow itself would clip values above 255."""
    if image.mode not in _WIDE_MODES:
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
    layer = image.convert("RGBA")
    white = Image.new("RGB", layer.size, _WHITE)
    white.paste(layer, mask=layer.getchannel("A"))
    return white


def _from_array(value: Any, name: str) -> Image.Image:
    array: np.ndarray[Any, Any]
    if isinstance(value, np.ndarray):
        array = value
    else:
        array = value.detach().cpu().float().numpy() if value.is_floating_point() else value.detach().cpu().numpy()
        if array.ndim == _COLOUR_NDIM and array.shape[0] in _CHANNELS:
            array = array.transpose(1, 2, 0)
    channels = array.shape[2] if array.ndim == _COLOUR_NDIM else 1
    if array.ndim not in (2, _COLOUR_NDIM) or channels not in _CHANNELS or not array.size:
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
    return Image.fromarray(
        np.ascontiguousarray(array.squeeze(2) if channels == 1 and array.ndim == _COLOUR_NDIM else array)
    )


def _resize(pixels: Tensor, size: int) -> Tensor:
    """(H, W, 3) -> (3, S, S) uint8, bicubic as in Pillow.

    Images that shrink by `_MIN_SHRINK` or more are resized by torch, which is faster and at most one grey level off
    (two in about one value of ten million): it rounds between the passes as Pillow does, with 16-bit weights in place
    of 22-bit ones.
    """
    import torch
    import torch.nn.functional as F

    height, width, _ = pixels.shape
    if min(height, width) < _MIN_SHRINK * size:
        square = Image.fromarray(pixels.numpy()).resize((size, size), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(square)).movedim(-1, 0)
    batch = pixels[None].movedim(-1, 1)
    if _VERTICAL_FIRST and height - size > 2 * (width - size):
        batch = F.interpolate(batch, size=(size, width), mode="bicubic", antialias=True)
    return F.interpolate(batch, size=(size, size), mode="bicubic", antialias=True)[0]


@lru_cache(maxsize=16)
def _scale_and_shift(device: torch.device, width: int, statistics: ChannelStatistics) -> tuple[Tensor, Tensor]:
    """(level / 255 - mean) / std as level * scale + shift, for a row of `width` pixels, (3 * width,) each.

    Cached, since copying stalls a device; for a full row, since three numbers at a time are slow on a CPU.
    """
    import torch

    with torch.inference_mode(False):  # the cached tensors must serve in training too
        mean, std = (torch.tensor(values, dtype=torch.float64).repeat(width) for values in statistics)
        return (1 / (255 * std)).to(device, torch.float32), (-mean / std).to(device, torch.float32)

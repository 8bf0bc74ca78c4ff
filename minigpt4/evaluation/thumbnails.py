"""Pictures for a page: small enough to live inside it."""

from __future__ import annotations

import base64
import io
import logging
import os
from pathlib import Path
from urllib.parse import quote

from PIL import Image, ImageOps

logger = logging.getLogger(__name__)

LONGER_SIDE = 360
"""Pixels of a thumbnail's longer side."""


def data_uri(content: bytes, kind: str) -> str:
    """`content` as a URI that a page can carry, e.g. for `image/png`."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def thumbnail(path: Path, longer_side: int = LONGER_SIDE) -> str | None:
    """The picture as a JPEG data URI, None where it cannot be read.

    Args:
        path: any picture that Pillow reads.
        longer_side: pixels at most; a smaller picture keeps its size.
    """
    try:
        with Image.open(path) as image:
            small = ImageOps.exif_transpose(image)
            small.thumbnail((longer_side, longer_side))
            buffer = io.BytesIO()
            _on_white(small).save(buffer, format="JPEG", quality=82)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        logger.debug("no thumbnail of %s: %s", path, error)
        return None
    return data_uri(buffer.getvalue(), "image/jpeg")


def relative_link(path: Path, page: Path) -> str | None:
    """The picture's address as seen from the page, None where there is no picture."""
    if not path.is_file():
        return None
    try:
        return quote(Path(os.path.relpath(path.resolve(), page.resolve().parent)).as_posix())
    except ValueError:
        # On Windows another drive cannot be reached by a relative path.
        return path.resolve().as_uri()


def _on_white(image: Image.Image) -> Image.Image:
    """JPEG has no transparency."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")

"""What a JPEG file says about itself before its pixels, read without decoding."""

from __future__ import annotations

import struct
from dataclasses import dataclass

FRAMES = {0xC0, 0xC1, 0xC2}
"""Baseline, extended and progressive pictures, Huffman coded: what every decoder reads alike."""
OTHER_FRAMES = {0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
"""Lossless, hierarchical and arithmetic coding."""
START, SCAN, APP1 = b"\xff\xd8", 0xDA, 0xE1
ORIENTATION = (b"\x01\x12", b"\x12\x01", b"Orientation")
"""The orientation's tag in EXIF of either byte order, and its name in XMP."""


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """Size and colours of a JPEG picture.

    Attributes:
        width: Columns, as stored.
        height: Rows, as stored.
        components: 1 is grey, 3 colour, 4 CMYK.
        oriented: Its metadata may say that it is to be turned.
    """

    width: int
    height: int
    components: int
    oriented: bool


def read_jpeg_header(data: bytes) -> JpegHeader | None:
    """The header of a JPEG file; None where it is something else, broken, or no common 8-bit JPEG.

    Args:
        data: The file, or its beginning. ITU-T T.81, annex B, says how it is laid out.
    """
    if not data.startswith(START):
        return None
    place, oriented, frame = 2, False, None
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker, length = struct.unpack_from(">xBH", data, place)
        body = data[place + 4 : place + 2 + length]
        if marker in OTHER_FRAMES:
            return None
        if marker in FRAMES and len(body) >= 6:
            frame = struct.unpack_from(">BHHB", body)
        elif marker == APP1:
            oriented = oriented or any(mark in body for mark in ORIENTATION)
        elif marker == SCAN:
            if frame is None or frame[0] != 8:
                return None
            return JpegHeader(width=frame[2], height=frame[1], components=frame[3], oriented=oriented)
        place += 2 + length
    return None

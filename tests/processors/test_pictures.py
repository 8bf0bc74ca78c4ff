"""Whatever a user has for a picture."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from minigpt4.common.errors import DataError
from minigpt4.processors.pictures import to_picture
from tests.processors.damaged import damaged_files, saved

RED, BLUE = (255, 0, 0), (0, 0, 255)
TURN_RIGHT = 6


def halves(width: int = 40, height: int = 20) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def near(found: Any, expected: tuple[int, ...]) -> bool:
    return all(abs(a - b) < 12 for a, b in zip(found, expected, strict=True))


def test_every_way_to_give_a_picture_is_the_same_picture(tmp_path: Path) -> None:
    image, path = halves(), tmp_path / "a.png"
    image.save(path)
    array = np.asarray(image)
    given = [path, str(path), path.read_bytes(), bytearray(path.read_bytes()), io.BytesIO(path.read_bytes()), image]
    given += [array, array / 255, torch.from_numpy(array.copy()), torch.from_numpy(array.copy()).permute(2, 0, 1)]
    given += [
        torch.from_numpy(array / 255).permute(2, 0, 1),
        np.dstack([array, np.full(array.shape[:2], 255, np.uint8)]),
    ]
    for value in given:
        picture = to_picture(value)
        assert picture.mode == "RGB"
        assert np.array_equal(np.asarray(picture), array)


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 1)])
def test_grey_arrays(shape: tuple[int, ...]) -> None:
    picture = to_picture(np.full(shape, 77, np.uint8))
    assert picture.size == (30, 20)
    assert picture.getpixel((3, 3)) == (77, 77, 77)


def test_exif_orientation_turns_the_picture_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = TURN_RIGHT
    picture = to_picture(saved(halves(), "JPEG", exif=exif))
    assert picture.size == (20, 40)
    assert near(picture.getpixel((10, 5)), RED) and near(picture.getpixel((10, 35)), BLUE)


def test_cmyk_and_palette() -> None:
    assert near(to_picture(saved(halves().convert("CMYK"), "JPEG")).getpixel((5, 5)), RED)
    assert near(to_picture(saved(halves().quantize(4), "PNG")).getpixel((35, 5)), BLUE)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_greys_keep_their_brightness(kind: str) -> None:
    grey = Image.fromarray(np.full((8, 8), 32768, np.uint16))
    assert near(to_picture(saved(grey, kind)).getpixel((4, 4)), (128, 128, 128))


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (BLUE, RED)]
    picture = to_picture(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert near(picture.getpixel((4, 4)), BLUE)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_are_white(mode: str) -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    clear.paste((0, 0, 0, 255), (0, 0, 4, 8))
    picture = to_picture(saved(clear.convert(mode), "PNG"))
    assert near(picture.getpixel((6, 4)), (255, 255, 255)) and near(picture.getpixel((1, 4)), (0, 0, 0))


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it has 40,000 x 40,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "is empty"),
        (b"no picture at all", "is no picture"),
        (saved(halves(400, 400), "JPEG")[:2000], "truncated"),
        (saved(halves(400, 400), "PNG")[:-30], "cannot be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no picture"),
        (bomb(), "million"),
        (3, "is of type int; expected a path"),
        (None, "is of type NoneType"),
        (np.zeros((4, 4, 7), np.uint8), r"shape \(4, 4, 7\)"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)"),
        (np.full((4, 4, 3), 300), "expected uint8"),
        (np.full((4, 4, 3), np.nan), "expected uint8"),
        ("no/such/file.png", "^image no/such/file.png does not exist$"),
        (str(Path(__file__).parent), "is a folder"),
    ],
)
def test_what_is_no_picture_is_one_line(value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        to_picture(value)
    assert "\n" not in str(caught.value)


def test_200_damaged_files() -> None:
    """Each is a picture or an error of ours; nothing else escapes."""
    outcomes = {"picture": 0, "error": 0}
    for data in damaged_files(200):
        try:
            assert to_picture(data).mode == "RGB"
            outcomes["picture"] += 1
        except DataError:
            outcomes["error"] += 1
    assert min(outcomes.values()) > 20

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from minigpt4.common.errors import DataError
from minigpt4.common.registry import processors
from minigpt4.processors.image import ImageProcessor, open_image
from minigpt4.processors.normalise import CLIP_MEAN, CLIP_STD

ORIENTATION = 0x0112


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (40, 20), **options: object) -> Path:
    Image.new(mode, size, 128 if len(mode) == 1 else (200, 100, 50, 255)[: len(mode)]).save(path, **options)
    return path


def test_a_picture_becomes_a_normalised_square() -> None:
    tensor = ImageProcessor(16)(Image.new("RGB", (40, 20), (255, 0, 0)))
    assert (tensor.shape, tensor.dtype) == ((3, 16, 16), torch.float32)
    red, green, _ = ((value - mean) / std for value, mean, std in zip((1, 0, 0), CLIP_MEAN, CLIP_STD, strict=True))
    assert tensor[0].mean().item() == pytest.approx(red, abs=1e-5)
    assert tensor[1].mean().item() == pytest.approx(green, abs=1e-5)


def test_training_and_evaluation_see_the_same() -> None:
    assert processors.get("blip2_image_train") is processors.get("blip2_image_eval")


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16", "LA"])
def test_any_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    suffix = ".tif" if mode == "CMYK" else ".png"
    path = tmp_path / f"a{suffix}"
    Image.new(mode, (8, 6)).save(path)
    image = open_image(path)
    assert (image.mode, image.size) == ("RGB", (8, 6))
    assert ImageProcessor(4)(image).shape == (3, 4, 4)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image = Image.new("RGB", (40, 20))
    image.paste((255, 0, 0), (0, 0, 20, 20))  # the left half is red; upright it is the top
    image.save(tmp_path / "a.png", exif=exif)
    upright = open_image(tmp_path / "a.png")
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5)) == (255, 0, 0) and upright.getpixel((10, 35)) == (0, 0, 0)


def test_a_truncated_picture_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", size=(200, 200))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"image .*a\.jpg cannot be read"):
        open_image(path)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\nrest"])
def test_what_is_no_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"image .*a\.jpg cannot be read"):
        open_image(path)


def test_a_missing_picture_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"image .*no\.jpg does not exist"):
        open_image(tmp_path / "no.jpg")
    with pytest.raises(DataError, match="cannot be read"):
        open_image(tmp_path)

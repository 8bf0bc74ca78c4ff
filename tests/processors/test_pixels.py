"""The quick way from a file to pixels beside Pillow's."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from minigpt4.common.errors import DataError
from minigpt4.processors.image import ImageProcessor, load_picture, open_image
from minigpt4.processors.jpeg import read_jpeg_header
from minigpt4.processors.normalise import CLIP_MEAN, CLIP_STD, normalise
from minigpt4.processors.pixels import quick_pixels
from tests.processors.pictures import draw_photo

SIZE = 64
ORIENTATION = 0x0112
PHOTO = (150, 112)
reference = v2.Compose(
    [v2.Resize((SIZE, SIZE), interpolation=v2.InterpolationMode.BICUBIC, antialias=True), v2.PILToTensor()]
)


def levels_apart(first: Tensor, second: Tensor) -> int:
    assert first.shape == second.shape and first.dtype == second.dtype == torch.uint8
    return int((first.int() - second.int()).abs().max())


def jpeg(path: Path, size: tuple[int, int] = PHOTO, mode: str = "RGB", seed: int = 0, **options: object) -> Path:
    draw_photo(seed, *size).convert(mode).save(path, "JPEG", **{"quality": 90} | options)
    return path


@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": "4:2:0"},
        {"subsampling": "4:2:2"},
        {"subsampling": "4:4:4"},
        {"subsampling": "4:2:0", "progressive": True},
        {"subsampling": "4:2:0", "restart_marker_rows": 2},
        {"subsampling": "4:4:4", "keep_rgb": True},
        {"mode": "L"},
        {"quality": 15},
        {"quality": 100},
        {"icc_profile": b"a profile that Pillow passes over as well"},
        {"comment": b"taken in Rome"},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [PHOTO, (112, 150), (97, 301), (301, 97), (95, 95), (640, 91), (91, 640)], ids=str)
def test_photographs_take_the_quick_way_and_give_what_pillow_gives(
    tmp_path: Path, options: dict[str, object], size: tuple[int, int]
) -> None:
    path = jpeg(tmp_path / "a.jpg", size, **options)  # type: ignore[arg-type]
    quick = quick_pixels(path, SIZE)
    assert quick is not None and quick.movedim(0, -1).is_contiguous()
    assert levels_apart(quick, reference(open_image(path))) <= 1


@pytest.mark.parametrize("width", range(90, 200, 11))
def test_the_passes_come_in_pillows_order_at_every_shape(tmp_path: Path, width: int) -> None:
    threshold = 2 * width - SIZE
    for height in (threshold - 1, threshold, threshold + 1, threshold + 2):
        path = jpeg(tmp_path / "a.jpg", (width, height), seed=width)
        quick = quick_pixels(path, SIZE)
        assert quick is not None
        assert levels_apart(quick, reference(open_image(path))) <= 1, height


def test_the_recipes_size_of_picture(tmp_path: Path) -> None:
    for seed, size in enumerate([(500, 375), (375, 500), (500, 333), (333, 500)]):
        path = jpeg(tmp_path / "a.jpg", size, seed=seed, subsampling="4:2:0")
        quick = quick_pixels(path, 224)
        assert quick is not None
        assert levels_apart(quick, v2.functional.pil_to_tensor(open_image(path).resize((224, 224), 3))) <= 1


def test_real_photographs(shared_data: Path) -> None:
    worst = [0, 0, 0]
    for path in sorted((shared_data / "images").glob("*.jpg")):
        quick = quick_pixels(path, SIZE)
        if quick is None:
            continue
        apart = (quick.int() - reference(open_image(path)).int()).abs()
        worst[0] += apart.numel()
        worst[1] += int((apart > 1).sum())
        worst[2] = max(worst[2], int(apart.max()))
    values, above_one, largest = worst
    assert values > 0
    assert largest <= 2 and above_one <= values * 1e-5


OTHERS = {
    "a.png": {"mode": "RGB"},
    "rgba.png": {"mode": "RGBA"},
    "palette.png": {"mode": "P"},
    "a.gif": {"mode": "P"},
    "a.webp": {"mode": "RGB"},
    "a.bmp": {"mode": "RGB"},
    "cmyk.jpg": {"mode": "CMYK"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_everything_else_is_pillows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    draw_photo(0, *PHOTO).convert(OTHERS[name]["mode"]).save(path)
    assert quick_pixels(path, SIZE) is None
    assert levels_apart(load_picture(path, ImageProcessor(SIZE)), reference(open_image(path))) == 0


def test_16_bit_pictures_are_pillows(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("I;16", PHOTO, 40).save(path)
    assert quick_pixels(path, SIZE) is None
    assert levels_apart(load_picture(path, ImageProcessor(SIZE)), reference(open_image(path))) == 0


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (50, 3), (60, 70), (80, 300), (300, 80)], ids=str)
def test_what_hardly_shrinks_is_pillows(tmp_path: Path, size: tuple[int, int]) -> None:
    path = jpeg(tmp_path / "a.jpg", size)
    assert quick_pixels(path, SIZE) is None
    assert levels_apart(load_picture(path, ImageProcessor(SIZE)), reference(open_image(path))) == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photograph_stands_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = jpeg(tmp_path / "a.jpg", exif=exif)
    pixels = load_picture(path, ImageProcessor(SIZE))
    assert levels_apart(pixels, reference(open_image(path))) <= 1
    if orientation > 1:
        assert levels_apart(pixels, reference(Image.open(path))) > 50, "the test's picture must show the difference"


def test_an_orientation_in_xmp_counts_too(tmp_path: Path) -> None:
    path = jpeg(tmp_path / "a.jpg", xmp=b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"></x:xmpmeta>')
    assert levels_apart(load_picture(path, ImageProcessor(SIZE)), reference(open_image(path))) == 0


def test_the_name_of_a_file_says_nothing(tmp_path: Path) -> None:
    assert quick_pixels(jpeg(tmp_path / "photo.png"), SIZE) is not None
    draw_photo(0, *PHOTO).save(tmp_path / "drawing.jpg", "PNG")
    assert quick_pixels(tmp_path / "drawing.jpg", SIZE) is None
    assert load_picture(tmp_path / "drawing.jpg", ImageProcessor(SIZE)).shape == (3, SIZE, SIZE)


@pytest.mark.parametrize("kept", [0, 2, 20, 300, 0.5, 0.9, 0.99])
def test_a_truncated_photograph_is_refused_by_name(tmp_path: Path, kept: float) -> None:
    path = jpeg(tmp_path / "cut.jpg")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept if kept >= 1 else kept * len(content))])
    with pytest.raises(DataError, match=r"image .*cut\.jpg cannot be read"):
        load_picture(path, ImageProcessor(SIZE))


def test_a_missing_picture_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"image .*no\.jpg does not exist"):
        load_picture(tmp_path / "no.jpg", ImageProcessor(SIZE))


def test_a_picture_too_large_to_be_honest_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jpeg(tmp_path / "bomb.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"image .*bomb\.jpg cannot be read"):
        load_picture(path, ImageProcessor(SIZE))


def test_a_processor_that_does_more_is_not_passed_over(tmp_path: Path) -> None:
    class Inverting(ImageProcessor):
        def __call__(self, image: Image.Image) -> Tensor:
            return -super().__call__(image)

    path = jpeg(tmp_path / "a.jpg")
    torch.testing.assert_close(load_picture(path, Inverting(SIZE)), -ImageProcessor(SIZE)(open_image(path)))


def test_normalising_is_torchvisions() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(2, 3, 4).view(2, 3, 32, 32)
    wanted = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(CLIP_MEAN, CLIP_STD)])(pixels)
    torch.testing.assert_close(normalise(pixels), wanted, rtol=1e-6, atol=1e-6)
    assert pixels.max() == 255, "the picture itself stays as it was"


def test_what_is_normalised_already_stays() -> None:
    floats = torch.rand(1, 3, 4, 4)
    assert normalise(floats) is floats


@pytest.mark.parametrize("mode, components", [("L", 1), ("RGB", 3), ("CMYK", 4)])
def test_the_header_of_a_jpeg(mode: str, components: int) -> None:
    file = io.BytesIO()
    draw_photo(0, *PHOTO).convert(mode).save(file, "JPEG")
    header = read_jpeg_header(file.getvalue())
    assert header is not None
    assert (header.width, header.height, header.components, header.oriented) == (*PHOTO, components, False)
    assert read_jpeg_header(file.getvalue()[:60]) is None


def test_without_torchvisions_decoder_pillow_does_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jpeg(tmp_path / "a.jpg")
    monkeypatch.setattr("minigpt4.processors.pixels.decode_jpeg", None)
    assert levels_apart(load_picture(path, ImageProcessor(SIZE)), reference(open_image(path))) == 0

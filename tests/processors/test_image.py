"""Opening, resizing and normalising images."""

from __future__ import annotations

import errno
import io
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from minigpt4.common.errors import DataError
from minigpt4.common.registry import processors
from minigpt4.processors import image as image_module
from minigpt4.processors.image import (
    CLIP_MEAN,
    CLIP_STD,
    ImageProcessor,
    decode_image,
    normalize,
    open_image,
    stack_images,
)
from tests.processors.damaged import damaged_files, saved
from tests.processors.forms import FORMS
from tests.processors.photos import draw_photo

RED, BLUE, WHITE, BLACK = (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
ORIENTATION = 0x0112
SIZE = 64
PHOTO = (150, 112)
pillow_resize = v2.Compose(
    [v2.Resize((SIZE, SIZE), interpolation=v2.InterpolationMode.BICUBIC, antialias=True), v2.PILToTensor()]
)


def halves(width: int = 40, height: int = 20) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def near(found: Any, expected: tuple[int, ...]) -> bool:
    return all(abs(a - b) < 12 for a, b in zip(found, expected, strict=True))


def levels_apart(first: Tensor, second: Tensor) -> int:
    assert first.shape == second.shape and first.dtype == second.dtype == torch.uint8
    return int((first.int() - second.int()).abs().max())


def jpeg(path: Path, size: tuple[int, int] = PHOTO, mode: str = "RGB", seed: int = 0, **options: object) -> Path:
    draw_photo(seed, *size).convert(mode).save(path, "JPEG", **{"quality": 90} | options)
    return path


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it has 40,000 x 40,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


class TestForms:
    def test_every_way_to_give_an_image_gives_the_same_pixels(self, tmp_path: Path) -> None:
        image, path = halves(), tmp_path / "a.png"
        image.save(path)
        array = np.asarray(image)
        opaque = np.full(array.shape[:2], 255, np.uint8)
        channels_first = torch.from_numpy(array.copy()).permute(2, 0, 1)
        for source in (
            path,
            str(path),
            path.read_bytes(),
            bytearray(path.read_bytes()),
            memoryview(path.read_bytes()),
            io.BytesIO(path.read_bytes()),
            image,
            array,
            array / 255,
            torch.from_numpy(array.copy()),
            channels_first,
            channels_first / 255,
            np.dstack([array, opaque]),
        ):
            assert np.array_equal(decode_image(source).numpy(), array), type(source)

    @pytest.mark.parametrize("name", FORMS)
    def test_path_bytes_and_pil_image_give_the_same_pixels(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        path.write_bytes(FORMS[name]())
        pixels = ImageProcessor(SIZE)(path)
        assert pixels.shape == (3, SIZE, SIZE)
        assert torch.equal(ImageProcessor(SIZE)(path.read_bytes()), pixels)
        with Image.open(path) as image:
            assert torch.equal(ImageProcessor(SIZE)(image), pixels)
        assert torch.equal(ImageProcessor(SIZE)(open_image(path)), pixels)

    @pytest.mark.parametrize("shape", [(20, 30), (20, 30, 1)])
    def test_grey_arrays(self, shape: tuple[int, ...]) -> None:
        image = open_image(np.full(shape, 77, np.uint8))
        assert image.size == (30, 20)
        assert image.getpixel((3, 3)) == (77, 77, 77)

    @pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16", "LA"])
    def test_any_mode_becomes_rgb(self, tmp_path: Path, mode: str) -> None:
        path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
        Image.new(mode, (8, 6)).save(path)
        assert (open_image(path).mode, open_image(path).size) == ("RGB", (8, 6))

    @pytest.mark.parametrize("kind", ["JPEG", "PNG"])
    def test_exif_orientation_turns_the_image_upright(self, kind: str) -> None:
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        image = open_image(saved(halves(), kind, exif=exif))
        assert image.size == (20, 40)
        assert near(image.getpixel((10, 5)), RED) and near(image.getpixel((10, 35)), BLUE)

    def test_an_orientation_in_xmp_counts_too(self, tmp_path: Path) -> None:
        xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"></x:xmpmeta>'
        assert decode_image(jpeg(tmp_path / "a.jpg", xmp=xmp)).shape == (PHOTO[0], PHOTO[1], 3)

    def test_cmyk_and_palette(self) -> None:
        assert near(open_image(saved(halves().convert("CMYK"), "JPEG")).getpixel((5, 5)), RED)
        assert near(open_image(saved(halves().quantize(4), "PNG")).getpixel((35, 5)), BLUE)

    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    def test_16_bit_grey_keeps_its_brightness(self, kind: str) -> None:
        grey = Image.fromarray(np.full((8, 8), 32768, np.uint16))
        assert near(open_image(saved(grey, kind)).getpixel((4, 4)), (128, 128, 128))

    def test_the_first_frame_of_an_animation(self) -> None:
        frames = [Image.new("RGB", (8, 8), colour) for colour in (BLUE, RED)]
        image = open_image(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]))
        assert near(image.getpixel((4, 4)), BLUE)

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
    def test_transparent_pixels_become_white(self, mode: str) -> None:
        clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
        clear.paste((0, 0, 0, 255), (0, 0, 4, 8))
        image = open_image(saved(clear.convert(mode), "PNG"))
        assert near(image.getpixel((6, 4)), WHITE) and near(image.getpixel((1, 4)), BLACK)


class TestErrors:
    @pytest.mark.parametrize(
        ("source", "message"),
        [
            (b"", "is empty"),
            (b"not an image at all", "is not an image"),
            (saved(halves(400, 400), "JPEG")[:2000], "truncated"),
            (saved(halves(400, 400), "PNG")[:-30], "cannot be read"),
            (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"),
            (bomb(), "million"),
            (3, "is of type int; expected a path"),
            (None, "is of type NoneType"),
            (np.zeros((4, 4, 7), np.uint8), r"shape \(4, 4, 7\)"),
            (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)"),
            (np.full((4, 4, 3), 300), "expected uint8"),
            (np.full((4, 4, 3), np.nan), "expected uint8"),
            ("no/such/file.png", "^image no/such/file.png does not exist$"),
            (f"{__file__}/a.png", "does not exist$"),
            (str(Path(__file__).parent), "is a folder"),
            ("/dev/zero", "^image /dev/zero cannot be read: it is not a regular file$"),
            ("a" * 300, "cannot be read: File name too long"),
            ("null\0byte.png", "cannot be read: embedded null byte"),
            (io.StringIO("text"), "cannot be read: a bytes-like object is required"),
        ],
    )
    def test_anything_else_is_refused_in_one_line(self, source: Any, message: str) -> None:
        with pytest.raises(DataError, match=message) as caught:
            open_image(source)
        assert "\n" not in str(caught.value)

    def test_a_pipe_is_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.png")
        with pytest.raises(DataError, match=r"pipe\.png cannot be read: it is not a regular file"):
            decode_image(tmp_path / "pipe.png")

    def test_a_file_that_may_not_be_read_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def denied(path: Path) -> bytes:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        path = tmp_path / "a.png"
        path.write_bytes(b"x")
        monkeypatch.setattr(Path, "read_bytes", denied)
        with pytest.raises(DataError, match=r"^image .*a\.png cannot be read: Permission denied$"):
            decode_image(path)

    def test_threads_leave_the_warning_filters_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """`warnings.catch_warnings` in several threads can leave its own filters behind."""
        entered: list[Any] = []
        monkeypatch.setattr(warnings.catch_warnings, "__enter__", entered.append)
        before = list(warnings.filters)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(decode_image, [FORMS[name]() for name in ("palette_clear.png", "photo.jpg", "grey16.png")]))
        assert warnings.filters == before and not entered

    @pytest.mark.parametrize("content", [b"not an image", b"\x89PNG\r\n\x1a\nrest"])
    def test_a_damaged_file_is_named(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "a.jpg"
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"image .*a\.jpg cannot be read"):
            decode_image(path)

    @pytest.mark.parametrize("kept", [2, 20, 300, 0.5, 0.9, 0.99])
    def test_a_truncated_photograph_is_named(self, tmp_path: Path, kept: float) -> None:
        path = jpeg(tmp_path / "cut.jpg")
        content = path.read_bytes()
        path.write_bytes(content[: int(kept if kept >= 1 else kept * len(content))])
        with pytest.raises(DataError, match=r"image .*cut\.jpg cannot be read"):
            ImageProcessor(SIZE)(path)

    @pytest.mark.parametrize("name", ["a.jpg", "a.png"])
    def test_the_size_limit_holds_for_every_format(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        path = tmp_path / name
        draw_photo(0, *PHOTO).save(path)
        monkeypatch.setattr(image_module, "MAX_PIXELS", 1000)
        with pytest.raises(DataError, match=rf"image .*{name} cannot be read: it has 150 x 112 pixels"):
            decode_image(path)

    def test_200_damaged_files(self) -> None:
        """Each is an image or an error of ours; nothing else escapes."""
        outcomes = {"image": 0, "error": 0}
        for data in damaged_files(200):
            try:
                assert decode_image(data).shape[2] == 3
                outcomes["image"] += 1
            except DataError:
                outcomes["error"] += 1
        assert min(outcomes.values()) > 20


class TestQuickJpeg:
    """torchvision's decoder must give the very bytes that Pillow gives."""

    @pytest.fixture
    def by_pillow(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        def decode(source: Any) -> Tensor:
            with monkeypatch.context() as patch:
                patch.setattr(image_module, "jpeg_decoder", lambda: None)
                return decode_image(source)

        return decode

    @pytest.fixture
    def used(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Grows with each image that torchvision decodes."""
        calls: list[int] = []
        original = image_module.jpeg_decoder()
        assert original is not None

        def counting(data: bytes) -> image_module.Pixels:
            pixels = original(data)
            calls.append(1)
            return pixels

        monkeypatch.setattr(image_module, "jpeg_decoder", lambda: counting)
        return calls

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
            {"icc_profile": b"a profile that Pillow ignores as well"},
            {"comment": b"taken in Rome"},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("size", [PHOTO, (112, 150), (97, 301), (17, 33), (640, 91)], ids=str)
    def test_it_decodes_as_pillow_does(
        self, tmp_path: Path, used: list[int], by_pillow: Any, options: dict[str, object], size: tuple[int, int]
    ) -> None:
        path = jpeg(tmp_path / "a.jpg", size, **options)  # type: ignore[arg-type]
        pixels = decode_image(path)
        assert used == [1]
        assert pixels.is_contiguous()
        assert torch.equal(pixels, by_pillow(path))

    @pytest.mark.parametrize("name", FORMS)
    def test_every_form_is_the_same_without_it(self, by_pillow: Any, name: str) -> None:
        data = FORMS[name]()
        assert torch.equal(decode_image(data), by_pillow(data))

    def test_damaged_photographs_have_the_same_outcome_without_it(self, by_pillow: Any) -> None:
        rng = np.random.default_rng(0)
        original = saved(draw_photo(0, *PHOTO), "JPEG", quality=90)
        outcomes = {"image": 0, "error": 0}
        for number in range(300):
            data = bytearray(original)
            for position in rng.integers(2, len(data), rng.choice([1, 3, 20])):
                data[position] = rng.integers(256)
            if number % 5 == 0:
                del data[rng.integers(len(data)) :]
            try:
                expected = by_pillow(bytes(data))
            except DataError:
                with pytest.raises(DataError):
                    decode_image(bytes(data))
                outcomes["error"] += 1
                continue
            assert torch.equal(decode_image(bytes(data)), expected)
            outcomes["image"] += 1
        assert min(outcomes.values()) > 20

    def test_real_photographs(self, shared_data: Path, by_pillow: Any) -> None:
        paths = sorted((shared_data / "images").glob("*.jpg"))[:40]
        assert paths
        for path in paths:
            assert torch.equal(decode_image(path), by_pillow(path)), path

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_a_turned_photograph_is_upright(self, tmp_path: Path, by_pillow: Any, orientation: int) -> None:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        path = jpeg(tmp_path / "a.jpg", exif=exif)
        assert torch.equal(decode_image(path), by_pillow(path))
        if orientation > 1:
            unturned = torch.from_numpy(np.array(Image.open(path)))
            assert not torch.equal(decode_image(path), unturned)


class TestResize:
    @pytest.mark.parametrize("width", range(90, 200, 11))
    def test_it_resizes_as_pillow_does_at_every_shape(self, width: int) -> None:
        """Within one grey level; Pillow resizes tall images along their height first, from a threshold on."""
        threshold = 2 * width - SIZE
        for height in (*range(91, 120, 9), threshold - 1, threshold, threshold + 1, threshold + 2):
            image = draw_photo(width, width, height)
            assert levels_apart(ImageProcessor(SIZE)(image), pillow_resize(image)) <= 1, height

    def test_the_published_image_size(self) -> None:
        for seed, size in enumerate([(500, 375), (375, 500), (500, 333), (333, 500)]):
            image = draw_photo(seed, *size)
            expected = v2.functional.pil_to_tensor(image.resize((224, 224), 3))
            assert levels_apart(ImageProcessor(224)(image), expected) <= 1

    def test_real_photographs(self, shared_data: Path) -> None:
        levels = torch.cat(
            [
                (ImageProcessor(SIZE)(path).int() - pillow_resize(open_image(path)).int()).abs().flatten()
                for path in sorted((shared_data / "images").glob("*.jpg"))
            ]
        )
        assert levels.max() <= 2 and (levels > 1).double().mean() <= 1e-5

    @pytest.mark.parametrize("size", [(1, 1), (3, 50), (50, 3), (60, 70), (80, 300), (300, 80)], ids=str)
    def test_what_hardly_shrinks_is_resized_by_pillow(self, size: tuple[int, int]) -> None:
        image = draw_photo(0, *size)
        assert torch.equal(ImageProcessor(SIZE)(image), pillow_resize(image))

    def test_training_and_evaluation_see_the_same(self) -> None:
        assert processors.get("blip2_image_train") is processors.get("blip2_image_eval") is ImageProcessor


class TestNormalize:
    def test_it_is_torchvisions(self) -> None:
        pixels = torch.arange(256, dtype=torch.uint8).repeat(2, 3, 4).view(2, 3, 32, 32)
        expected = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(CLIP_MEAN, CLIP_STD)])(pixels)
        torch.testing.assert_close(normalize(pixels), expected, rtol=1e-6, atol=1e-6)
        assert pixels.max() == 255, "the image itself is unchanged"

    def test_floats_are_normalised_already(self) -> None:
        floats = torch.rand(1, 3, 4, 4)
        assert normalize(floats) is floats

    def test_the_memory_layout_does_not_matter(self) -> None:
        levels = torch.randint(0, 256, (2, 3, 7, 7), dtype=torch.uint8)
        assert torch.equal(normalize(levels), normalize(levels.to(memory_format=torch.channels_last)))
        assert torch.equal(normalize(levels[0]), normalize(levels)[0])


class TestStack:
    @pytest.mark.parametrize("size", [(120, 90), (60, 40)], ids=["by torch", "by Pillow"])
    def test_channels_stay_last_in_memory(self, tmp_path: Path, size: tuple[int, int]) -> None:
        images = [ImageProcessor(48)(jpeg(tmp_path / f"{number}.jpg", size, seed=number)) for number in range(3)]
        batch = stack_images(images)
        assert batch.shape == (3, 3, 48, 48)
        for row, image in zip(batch, images, strict=True):
            assert torch.equal(row, image)
        for tensor in (batch, normalize(batch)):
            assert tensor.is_contiguous(memory_format=torch.channels_last)

    def test_other_layouts_can_be_stacked(self) -> None:
        floats = [torch.rand(3, 5, 5), torch.rand(5, 5, 3).movedim(-1, 0)]
        assert torch.equal(stack_images(floats), torch.stack(floats))

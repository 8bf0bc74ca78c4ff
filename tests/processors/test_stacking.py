"""A batch holds the pictures as they are, and lies in memory as they do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minigpt4.processors.image import ImageProcessor, load_picture
from minigpt4.processors.normalise import normalise
from minigpt4.processors.stacking import stack_pictures
from tests.processors.pictures import draw_photo


@pytest.mark.parametrize("size", [(120, 90), (60, 40)], ids=["quick", "by Pillow"])
def test_pictures_stay_pixel_by_pixel_from_the_file_to_the_encoder(tmp_path: Path, size: tuple[int, int]) -> None:
    paths = [tmp_path / f"{number}.jpg" for number in range(3)]
    for number, path in enumerate(paths):
        draw_photo(number, *size).save(path)
    pictures = [load_picture(path, ImageProcessor(48)) for path in paths]
    batch = stack_pictures(pictures)
    assert batch.shape == (3, 3, 48, 48)
    for row, picture in zip(batch, pictures, strict=True):
        assert torch.equal(row, picture)
    for tensor in (batch, normalise(batch)):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


def test_pictures_that_lie_otherwise_can_be_stacked() -> None:
    floats = [torch.rand(3, 5, 5), torch.rand(5, 5, 3).movedim(-1, 0)]
    assert torch.equal(stack_pictures(floats), torch.stack(floats))


def test_a_picture_of_any_layout_is_normalised_alike() -> None:
    levels = torch.randint(0, 256, (2, 3, 7, 7), dtype=torch.uint8)
    assert torch.equal(normalise(levels), normalise(levels.to(memory_format=torch.channels_last)))
    assert torch.equal(normalise(levels[0]), normalise(levels)[0])

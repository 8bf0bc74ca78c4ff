from __future__ import annotations

from dataclasses import replace

import torch

from minigpt4.common.types import IGNORED_LABEL, IMAGE_POSITION, Encoded, Sample
from minigpt4.datasets.loaders import collate
from minigpt4.processors.image import normalize


def sample_of(name: str, ids: list[int], targets: int, pictures: int = 1, skipped: tuple[str, ...] = ()) -> Sample:
    labels = [IGNORED_LABEL] * (len(ids) - targets) + ids[len(ids) - targets :]
    images = tuple(torch.full((3, 2, 2), float(len(ids))) for _ in range(pictures))
    return Sample(image_id=name, images=images, encoded=Encoded(input_ids=ids, labels=labels), skipped=skipped)


def test_samples_are_padded_on_the_right() -> None:
    batch = collate([sample_of("a", [1, IMAGE_POSITION, 5], 1), sample_of("b", [1, IMAGE_POSITION, 6, 7, 8], 2)])
    assert batch.image_ids == ["a", "b"]
    assert batch.input_ids.tolist() == [[1, IMAGE_POSITION, 5, 0, 0], [1, IMAGE_POSITION, 6, 7, 8]]
    ignored = IGNORED_LABEL
    assert batch.labels.tolist() == [[ignored, ignored, 5, ignored, ignored], [ignored, ignored, ignored, 7, 8]]
    assert batch.lengths == [3, 5]
    assert batch.num_targets == 3
    assert batch.images is not None and batch.images[:, 0, 0, 0].tolist() == [3.0, 5.0]
    assert batch.skipped == []


def test_pictures_of_all_samples_follow_each_other() -> None:
    batch = collate([sample_of("a", [1, 2], 1, pictures=2), sample_of("b", [1], 1, pictures=1)])
    assert batch.images is not None and batch.images[:, 0, 0, 0].tolist() == [2.0, 2.0, 1.0]


def test_no_picture_at_all() -> None:
    assert collate([sample_of("a", [1, 2], 1, pictures=0)]).images is None


def test_messages_of_all_samples_are_kept() -> None:
    batch = collate([sample_of("a", [1], 1, skipped=("x", "y")), sample_of("b", [1], 1, skipped=("z",))])
    assert batch.skipped == ["x", "y", "z"]
    assert batch.to("cpu").skipped == ["x", "y", "z"]


def test_pictures_stay_uint8() -> None:
    levels = torch.full((3, 2, 2), 7, dtype=torch.uint8)
    batch = collate([replace(sample_of(name, [1], 1), images=(levels,)) for name in "ab"])
    assert batch.images is not None and batch.images.dtype is torch.uint8
    assert batch.images.unique().tolist() == [7]


def test_grey_levels_beside_a_users_floats_are_normalised() -> None:
    levels = torch.full((3, 2, 2), 7, dtype=torch.uint8)
    batch = collate([sample_of("floats", [1, 2], 1), replace(sample_of("levels", [1], 1), images=(levels,))])
    assert batch.images is not None
    assert batch.images[0].unique().tolist() == [2.0]
    torch.testing.assert_close(batch.images[1], normalize(levels))

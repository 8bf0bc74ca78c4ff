from __future__ import annotations

import pytest

from minigpt4.common.errors import DataError
from minigpt4.scenes.sampling import sample_split, scene_code, split_of
from minigpt4.scenes.truth import BACKGROUNDS, COLOURS, SHAPES


def test_splits_share_no_scene_under_any_seed() -> None:
    codes = {
        split: {scene_code(p.scene) for seed in (0, 7) for p in sample_split(split, 400, seed, start)}
        for split, start in (("train", 0), ("val", 400), ("test", 800))
    }
    assert not codes["train"] & codes["test"]
    assert not codes["train"] & codes["val"]
    assert not codes["val"] & codes["test"]


def test_scenes_of_one_split_differ() -> None:
    scenes = [p.scene for p in sample_split("train", 2000, 3)]
    assert len({scene_code(scene) for scene in scenes}) == 2000
    assert {split_of(scene) for scene in scenes} == {"train"}
    assert {len(scene.objects) for scene in scenes} == {1, 2, 3}
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert {o.colour for scene in scenes for o in scene.objects} == set(COLOURS)
    assert {o.shape for scene in scenes for o in scene.objects} == set(SHAPES)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(DataError, match="unknown split 'tset': choose from train, val, test"):
        next(sample_split("tset", 1, 0))

from __future__ import annotations

import random
from collections import Counter

from minigpt4.scenes.captions import captions_of, favoured_family, relation
from minigpt4.scenes.sampling import sample_split
from minigpt4.scenes.truth import Scene, SceneObject, named_objects, names_all


def test_five_captions_differ_and_each_names_every_object() -> None:
    for placed in sample_split("val", 500, 0):
        captions = captions_of(placed.scene, random.Random(placed.style_seed))
        assert len(set(captions)) == 5
        assert len({" ".join(caption.split()[:2]) for caption in captions}) >= 3
        for caption in captions:
            assert names_all(caption, placed.scene), (caption, placed.scene)
            assert caption[0].isupper() and caption.endswith(".")


def test_wording_depends_on_content() -> None:
    favoured = Counter(favoured_family(placed.scene) for placed in sample_split("train", 500, 0))
    assert len(favoured) == 5 and min(favoured.values()) > 20


def test_empty_scene_is_described_as_empty() -> None:
    captions = captions_of(Scene("black", ()), random.Random(0))
    assert len(set(captions)) == 5
    assert all("black" in caption and not named_objects(caption) for caption in captions)


def test_relation_is_seen_from_the_second_object() -> None:
    high = SceneObject("large", "red", "star", "top", "left")
    low = SceneObject("small", "blue", "ring", "bottom", "left")
    assert (relation(high, low), relation(low, high)) == ("above", "below")

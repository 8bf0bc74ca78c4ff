from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import ImageChops

from minigpt4.scenes.drawing import draw_scene, with_boxes
from minigpt4.scenes.sampling import sample_split
from minigpt4.scenes.truth import SHAPES


def test_an_image_has_the_size_asked_for_and_shows_the_objects_colour() -> None:
    assert draw_scene(next(sample_split("train", 1, 5)), 96).size == (96, 96)
    for placed in sample_split("train", 40, 5):
        image = draw_scene(placed)
        o, spot = placed.scene.objects[0], placed.placements[0]
        if o.shape in ("circle", "square", "cross", "heart", "star"):
            red, green, blue = image.getpixel((round(spot.x), round(spot.y)))
            assert {"red": red > 150 > max(green, blue), "green": green > max(red, blue)}.get(o.colour, True)


@pytest.mark.parametrize("shape", SHAPES)
def test_boxes_enclose_what_an_object_adds_to_the_image_at_any_size(shape: str) -> None:
    size = 200
    placed = next(p for p in sample_split("train", 300, 5) if p.scene.objects[-1].shape == shape)
    *others, last = placed.scene.objects
    with_it = replace(placed, scene=replace(placed.scene, objects=(last,)), placements=placed.placements[-1:])
    without = replace(placed, scene=replace(placed.scene, objects=()), placements=())
    change = ImageChops.difference(draw_scene(with_it, size), draw_scene(without, size)).convert("L")
    found = change.point(lambda level: 255 * (level > 8)).getbbox()
    box = with_boxes(placed).objects[len(others)].box
    assert box is not None and found is not None
    true = [size * side for side in (box.left, box.top, box.right, box.bottom)]
    assert found == pytest.approx(true, abs=2)

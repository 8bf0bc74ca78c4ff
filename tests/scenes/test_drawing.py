from __future__ import annotations

from minigpt4.scenes.drawing import draw_scene
from minigpt4.scenes.sampling import sample_split


def test_an_image_has_the_size_asked_for_and_shows_the_objects_colour() -> None:
    assert draw_scene(next(sample_split("train", 1, 5)), 96).size == (96, 96)
    for placed in sample_split("train", 40, 5):
        image = draw_scene(placed)
        o, spot = placed.scene.objects[0], placed.placements[0]
        if o.shape in ("circle", "square", "cross", "heart", "star"):
            red, green, blue = image.getpixel((round(spot.x), round(spot.y)))
            assert {"red": red > 150 > max(green, blue), "green": green > max(red, blue)}.get(o.colour, True)

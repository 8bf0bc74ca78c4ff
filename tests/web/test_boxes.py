"""Boxes on the page in a real browser: those of an answer are drawn on the image, a drawn one becomes text."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from minigpt4.api import LoadedModel
from minigpt4.common.boxes import TASKS
from minigpt4.common.schema import GenerationConfig
from minigpt4.models.generation import Answer
from tests.web.conftest import opened
from tests.web.test_browser import Page

pytestmark = pytest.mark.browser
ANSWER = "<p>a <b>circle</b></p> {<10><20><50><80>} and {<60><0><100><40>}"


class Locates(LoadedModel):
    """A model that answers with boxes."""

    def answer_ids(self, ids: Sequence[int], images: Sequence[Any], generation: GenerationConfig) -> Iterator[Answer]:
        for end in (10, len(ANSWER)):
            yield Answer(ANSWER[:end], tuple(range(end)))


@pytest.fixture(scope="module")
def boxes_address(tiny: LoadedModel) -> Iterator[str]:
    """The page with a model that knows tasks."""
    from minigpt4.web.page import build_page

    model = copy.copy(tiny.model)
    model.encoder = copy.copy(model.encoder)
    model.encoder.template = replace(model.encoder.template, in_pieces=True)
    locates = Locates(model, tiny.image_processor, tiny.defaults)
    yield from opened(build_page([locates], ["locates"], visitors=1))


def relative(page: Page, selector: str) -> list[list[float]]:
    """Sides of each box, as shares of its image."""
    script = """
    return [...document.querySelectorAll(arguments[0])].map((box) => {
      const inner = box.getBoundingClientRect();
      const outer = box.parentElement.querySelector("img").getBoundingClientRect();
      return [(inner.left - outer.left) / outer.width, (inner.top - outer.top) / outer.height,
              (inner.right - outer.left) / outer.width, (inner.bottom - outer.top) / outer.height];
    });"""
    return page.window.execute_script(script, selector)


@pytest.mark.parametrize("size", [(1600, 700), (700, 1600), (120, 80)], ids=["landscape", "portrait", "small"])
def test_boxes_are_drawn_and_a_drawn_box_is_asked_about(
    new_window: Any, boxes_address: str, tmp_path: Path, size: tuple[int, int]
) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    page = Page(new_window(height=1400), boxes_address)  # the image is in view, so that offsets start at its centre
    assert [button.text for button in page.all(".task")] == [f"[{task}]" for task in TASKS]
    Image.new("RGB", size, "white").save(tmp_path / "image.png")
    page.upload(str(tmp_path / "image.png"))
    # A box is drawn on the image before it has been asked about.
    image = page.until(lambda: page.all(".pending img"))[0]
    page.until(lambda: image.size["height"] > 20)
    width, height = image.size["width"], image.size["height"]
    start = (round(-0.25 * width), round(-0.25 * height))
    windows = len(page.window.window_handles)
    drag = ActionChains(page.window).move_to_element_with_offset(image, *start).click_and_hold()
    drag.move_by_offset(round(0.25 * width), round(0.5 * height)).release().perform()
    ActionChains(page.window).context_click(image).perform()
    assert len(page.window.window_handles) == windows, "the right button opened the image"
    typed = page.all("#box textarea")[0].get_attribute("value")
    assert typed.startswith("[identify] what is this {<")
    sides = [int(side) for side in typed.partition("{<")[2].rstrip(">}").split("><")]
    assert sides == pytest.approx([25, 25, 50, 75], abs=3)
    with page.finishing():
        page.ask()
    assert page.all(".turn .user .text")[0].text == typed
    # The answer's boxes lie where it says, its label is text.
    found = page.until(lambda: len(relative(page, ".boxed .box")) == 2 and relative(page, ".boxed .box"))
    for box, wanted in zip(found, ((0.1, 0.2, 0.5, 0.8), (0.6, 0.0, 1.0, 0.4)), strict=True):
        assert box == pytest.approx(wanted, abs=0.03)
    assert page.all(".boxed .box span")[0].text == "a <b>circle</b>" and not page.all(".box b")
    assert page.all(".turn .bot .text")[0].text == ANSWER
    # Buttons put their task in front, in place of another.
    for task in ("vqa", "refer"):
        next(button for button in page.all(".task") if button.text == f"[{task}]").click()
    assert page.all("#box textarea")[0].get_attribute("value") == "[refer] "


def test_a_model_without_tasks_shows_none_of_this(new_window: Any, address: str) -> None:
    assert not Page(new_window(), address).all(".tasks, .pending, .canvas")

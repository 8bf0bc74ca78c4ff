"""report.html: complete, self-contained, and safe whatever the captions hold."""

from __future__ import annotations

import base64
import io
import logging
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from minigpt4.evaluation.report import ImageResult, select_images, write_report
from minigpt4.evaluation.results import write_results
from minigpt4.processors.image import open_image
from tests.evaluation.conftest import HOSTILE, make_protocol, make_results


class Page(HTMLParser):
    """Counts the tags of a page, and makes sure that they are closed in order."""

    VOID = frozenset(["meta", "img", "input", "br", "link"])

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, kind: str | None = None) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag and kind in (None, attrs.get("class"))]


def thumbnails(page: Page) -> list[Image.Image]:
    sources = [attrs["src"] or "" for attrs in page.all("img") if attrs.get("class") != "trends"]
    prefix = "data:image/jpeg;base64,"
    assert all(source.startswith(prefix) for source in sources)
    return [Image.open(io.BytesIO(base64.b64decode(source.removeprefix(prefix)))) for source in sources]


def test_the_page_loads_nothing_and_runs_no_foreign_script(
    tmp_path: Path, image_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        written = write_results(
            tmp_path, make_protocol(), make_results(), image_dir=image_folder, open_image=open_image, title=HOSTILE
        )
    text = written.report.read_text()
    page = Page(text)
    assert len(page.all("script")) == 1 and page.all("b") == []
    # Captions are on the page as text, unchanged.
    assert page.text.count(HOSTILE) >= 6 + 2
    assert "http://" not in text and "https://" not in text and page.all("link") == []
    (trends,) = page.all("img", "trends")
    assert (trends["src"] or "").startswith("data:image/png")
    assert len(thumbnails(page)) == 4
    assert page.text.count("no image") == 2 and "2 of them could not be read" in page.text
    assert "2 of 6 images could not be read" in caplog.text
    cards = page.all("article", "card")
    assert [card["data-index"] for card in cards] == ["5", "4", "3", "2", "1", "0"]
    assert cards[0]["data-scores"] == "0.5,1.5"
    assert [option["value"] for option in page.all("option")][:2] == ["0", "1"]
    assert len(page.all("td", "best")) == 2
    assert len(page.all("table", "scores")) == 2
    assert "Compared with stage 1" in page.text and "+1.000 (1.000 to 1.000), p 0.0" in page.text


def test_thumbnails_show_the_pixels_that_the_model_saw(tmp_path: Path, image_folder: Path) -> None:
    written = write_results(
        tmp_path / "out", make_protocol(), make_results(), image_dir=image_folder, open_image=open_image
    )
    *_, red, transparent = thumbnails(Page(written.report.read_text()))
    assert red.size == transparent.size == (360, 144)
    assert transparent.getpixel((5, 5)) == (255, 255, 255)
    assert red.getpixel((5, 5))[0] > 240  # type: ignore[index]


def test_without_a_decoder_the_page_has_no_images(tmp_path: Path, image_folder: Path) -> None:
    written = write_results(tmp_path / "out", make_protocol(), make_results(), image_dir=image_folder)
    assert thumbnails(Page(written.report.read_text())) == []


def test_the_best_and_the_worst_are_shown(tmp_path: Path) -> None:
    images = [ImageResult(str(i), ["a"], {"x": "b"}, {"x": {"CIDEr": float(i % 10)}}) for i in range(20)]
    shown = select_images(images, "x", "CIDEr", 5)
    assert [index for index, _ in shown] == [9, 19, 8, 0, 10]
    assert [index for index, _ in select_images(images, "x", "CIDEr", 1)] == [9]
    assert len(select_images(images, "x", "CIDEr", 20)) == 20
    write_report(tmp_path / "r.html", make_protocol(), [{"checkpoint": "x", "CIDEr": 4.5}], images, max_cards=5)
    page = Page((tmp_path / "r.html").read_text())
    assert len(page.all("article", "card")) == 5
    assert "5 of 20 images: the 3 best and the 2 worst of x, by CIDEr" in page.text


def test_an_empty_report(tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", make_protocol(), [], [])
    assert "All 0 images" in Page((tmp_path / "r.html").read_text()).text

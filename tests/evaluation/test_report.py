"""report.html: complete, self-contained, and safe whatever the captions hold."""

from __future__ import annotations

import base64
import io
import logging
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from minigpt4.common.boxes import Box
from minigpt4.evaluation.predictions import Protocol
from minigpt4.evaluation.report import ImageResult, _marked, select_images, write_report
from minigpt4.evaluation.results import write_results
from minigpt4.evaluation.statistics import Comparisons, Difference
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
    sources = [attrs["src"] or "" for attrs in page.all("img") if "src" in attrs]
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
    assert page.text.count(HOSTILE) >= 6 + 1
    assert "http://" not in text and "https://" not in text and page.all("link") == []
    assert [plot["aria-label"] for plot in page.all("svg")] == ["BLEU", "CIDEr", "Objects named correctly"]
    identities = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(identities) == len(set(identities))
    assert len(thumbnails(page)) == 1 + 4
    assert page.text.count("no image") == 2 and "2 of them could not be read" in page.text
    assert "2 of 6 images could not be read" in caplog.text
    cards = page.all("article", "card")
    assert [card["data-index"] for card in cards] == ["5", "4", "3", "2", "1", "0"]
    assert cards[0]["data-scores"] == "0.5,1.5"
    assert [option["value"] for option in page.all("option")][:2] == ["0", "1"]
    assert len(page.all("td", "best")) == 2
    assert len(page.all("table", "scores")) == 2
    assert "Compared with stage 1" in page.text and "+1.0001.000 to 1.000p 0.0" in page.text


def test_differences_stand_in_the_order_of_the_scores(tmp_path: Path) -> None:
    metrics = ("CIDEr", "ROUGE_L", "Bleu_4")
    differences = [Difference("b", name, 0.5, 0.25, 0.75, 0.0001, 0.0002) for name in metrics]
    rows = [{"checkpoint": label} | dict.fromkeys(metrics, 0.5) for label in "ab"]
    comparisons = Comparisons("a", differences, "the note")
    write_report(tmp_path / "report.html", make_protocol(), rows, [], comparisons=comparisons)
    _, scores, compared = (tmp_path / "report.html").read_text().split("<thead>")
    for text in (scores, compared):
        assert re.findall(r'<th scope="col">(.*?)</th>', text) == ["Checkpoint", "BLEU-4", "ROUGE-L", "CIDEr"]
    assert compared.count("<td>+0.500<small>0.250 to 0.750</small><small>p &lt; 0.001</small></td>") == 3


def test_thumbnails_show_the_pixels_that_the_model_saw(tmp_path: Path, image_folder: Path) -> None:
    written = write_results(
        tmp_path / "out", make_protocol(), make_results(), image_dir=image_folder, open_image=open_image
    )
    *_, red, transparent = thumbnails(Page(written.report.read_text()))
    assert red.size == transparent.size == (480, 192)
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


def test_words_that_no_reference_has_are_marked() -> None:
    references = ["A red dog's ball.", "The DOG is <b>red</b>."]
    assert _marked("A Dog's <b> BALL &, the dog is blue!", references) == (
        "A Dog&#x27;s &lt;b&gt; BALL &amp;, the dog is <mark>blue</mark>!"
    )
    assert _marked("a <i>", []) == "a &lt;i&gt;"


def test_the_sample_is_in_the_middle_and_can_be_opened(tmp_path: Path, image_folder: Path) -> None:
    def shown(labels: tuple[str, ...]) -> str:
        results = make_results(labels)
        for item in results[1:]:  # gains of 0 to 5, by image
            for key, values in item.scores.per_image.items():
                values["CIDEr"] += int(key)
        written = write_results(
            tmp_path / labels[-1], make_protocol(), results, image_dir=image_folder, open_image=open_image
        )
        return written.report.read_text().split('class="sample"')[1].split("</section>")[0]

    # Of 6 images, 3 is in the middle; 4 and 5 cannot be opened.
    sample = shown(("stage 1", "epoch 0", "epoch 1"))
    assert 'alt="3.png"' in sample and "gain from stage 1 to epoch 1" in sample
    assert sample.index(">stage 1<") < sample.index(">epoch 1<") and ">epoch 0<" not in sample
    (image_folder / "3.png").unlink()
    assert 'alt="2.png"' in shown(("stage 1",))


@pytest.mark.browser
def test_pages_search_and_enlarging(tmp_path: Path, image_folder: Path, new_window: Any) -> None:
    from selenium.webdriver.common.by import By

    labels = ["stage 1", "epoch 0", "epoch 1"]
    images = [
        ImageResult(
            f"i{number}",
            ["a dog"],
            dict.fromkeys(labels, f"a dog {number}"),
            {label: {"CIDEr": float(number * (1 - 2 * (label == "stage 1")))} for label in labels},
            path=image_folder / "1.png",
        )
        for number in range(60)
    ]
    rows = [{"checkpoint": label, "CIDEr": 1.0} for label in labels]
    write_report(tmp_path / "r.html", make_protocol(), rows, images, open_image=open_image)
    window = new_window()
    window.get((tmp_path / "r.html").as_uri())

    def shown() -> list[str]:
        return [card.text for card in window.find_elements(By.CSS_SELECTOR, ".card:not([hidden]) h3")]

    assert shown() == [f"i{number}" for number in range(59, 35, -1)]
    answers = window.find_elements(By.CSS_SELECTOR, ".card:not([hidden]) .preds")[0].text
    assert "stage 1" in answers and "epoch 1" in answers and "epoch 0" not in answers
    back, following = window.find_elements(By.CSS_SELECTOR, ".pages")[0].find_elements(By.TAG_NAME, "button")
    assert not back.is_enabled()
    following.click()
    following.click()
    assert shown() == [f"i{number}" for number in range(11, -1, -1)] and not following.is_enabled()
    assert window.find_element(By.CSS_SELECTOR, ".pages output").text == "49 to 60 of 60"
    window.find_element(By.CSS_SELECTOR, ".card:not([hidden]) .zoom").click()
    assert window.find_element(By.CSS_SELECTOR, "dialog p").text == "i11"
    window.find_element(By.CSS_SELECTOR, "dialog .close").click()
    assert not window.find_element(By.TAG_NAME, "dialog").is_displayed()
    window.find_element(By.ID, "search").send_keys("dog 42")
    assert shown() == ["i42"]
    window.find_element(By.ID, "search").clear()
    window.find_element(By.ID, "search").send_keys(" ")
    # A checkpoint's name in the table leads to its worst images.
    window.find_element(By.LINK_TEXT, "stage 1").click()
    assert shown()[0] == "i59"
    assert window.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    assert window.get_log("browser") == []


def test_boxes_are_drawn_over_the_image(tmp_path: Path, image_folder: Path) -> None:
    found = {"a": f"<p>{HOSTILE}</p>{{<10><20><50><60>}} and {{<0><0><100><100>}}", "b": "nothing"}
    scores = {label: {"IoU_50": 1.0, "mean_IoU": 0.8} for label in found}
    true = (Box(0.5, 0.25, 1, 0.75, HOSTILE),)
    image = ImageResult("7", ["x"], found, scores, "1.png", image_folder / "1.png", "where?", "kind <b>", true)
    other = ImageResult("8", [], found, scores, "1.png", image_folder / "1.png", "what?", "", ())
    protocol = Protocol.of({"7": ["x"], "8": []}, ["refer"], dataset="d", task="refer")
    rows = [{"checkpoint": label, "IoU_50": 1.0} for label in found]
    write_report(tmp_path / "r.html", protocol, rows, [image, other], open_image=open_image)
    page = Page((tmp_path / "r.html").read_text())
    true_boxes, found_boxes = page.all("rect", "true"), page.all("rect", "found")
    sides = [[float(box[side] or 0) for side in ("x", "y", "width", "height")] for box in (*true_boxes, *found_boxes)]
    # A thumbnail has 480 x 192 pixels; the sample at the top, of the second image, shows no box of the last checkpoint.
    assert sides == [[240, 48, 240, 96]] + [[48, 38.4, 192, 76.8], [0, 0, 480, 192]] * 2
    assert {group["data-found"] for group in page.all("g") if "data-found" in group} == {"0", "1"}
    assert "kind <b>" in page.text and not page.all("b") and len(page.all("script")) == 1
    assert f"{HOSTILE} {{<50><25><100><75>}}" in page.text and "2 questions, 0 to 1 references each" in page.text

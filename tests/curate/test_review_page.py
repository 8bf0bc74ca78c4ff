"""The review page in a real browser: what it shows, and what the ledger holds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minigpt4.curate.ledger import Ledger, Tally
from minigpt4.curate.review import Review
from tests.curate.conftest import described, fill, kept, refined
from tests.curate.test_review import decisions, served
from tests.drawn import drawn_scenes

pytestmark = pytest.mark.browser
PATIENCE = 40
"""Seconds to wait for a page, on a busy machine."""
NOTHING = "Nothing waits for a decision."
MARKUP = "</textarea><script>window.hit=1</script><img src=x onerror='window.hit=1'> <b>bold</b> &amp; $token"
TEXTS = (
    "There is a large red circle at the top of the image, and a small blue star is below it.",
    "A pink ring stands at the left, beside two green squares of which the smaller one is in front.",
    MARKUP,
    "There is a yellow heart in the centre.",
)


class Page:
    """What a reviewer does and sees."""

    def __init__(self, window: Any, address: str) -> None:
        self.window = window
        window.get(address)

    def all(self, selector: str) -> list[Any]:
        found: list[Any] = self.window.find_elements("css selector", selector)
        return found

    def text(self, selector: str) -> str:
        return " ".join(found.text for found in self.all(selector))

    @property
    def written(self) -> str:
        """Content of the text field."""
        return str(self.all("#text")[0].get_attribute("value"))

    def until(self, condition: Callable[[], Any]) -> None:
        from selenium.common.exceptions import WebDriverException

        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                if condition():
                    return
            except (WebDriverException, IndexError):
                pass  # between two pages
            time.sleep(0.05)
        raise AssertionError(f"waited {PATIENCE} s; the page says: {self.text('body')}")

    def shows(self, sample: int, counts: str) -> None:
        """Wait for the page of a sample, with these counts at its top."""
        self.arrives(f"Sample {sample}", counts)

    def arrives(self, title: str, counts: str) -> None:
        """Wait for a page, its script included."""
        ready = "return document.readyState === 'complete'"
        self.until(
            lambda: self.window.execute_script(ready) and self.text("h1") == title and counts in self.text(".tally")
        )

    def click(self, name: str) -> None:
        self.all(f"#{name}")[0].click()

    def keys(self, *keys: str) -> None:
        """Press keys, wherever the focus is."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.window).send_keys(*keys).perform()

    def save_edit(self) -> None:
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        ActionChains(self.window).key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(Keys.CONTROL).perform()

    def keep(self, name: str) -> None:
        """Keep a screenshot where MINIGPT4_SCREENSHOTS says, for people."""
        folder = os.environ.get("MINIGPT4_SCREENSHOTS")
        if folder:
            self.window.save_screenshot(str(Path(folder) / name))


@pytest.fixture(scope="module")
def window(open_windows: Callable[..., Any]) -> Any:
    """One browser for all tests, each of which has a server, and so a page, of its own."""
    return open_windows(1200, 800)


@pytest.fixture
def page(ledger: Ledger, tmp_path: Path, window: Any) -> Iterator[Page]:
    """Four samples that wait for a decision."""
    fill(ledger, 4, lambda n: described(n, f"{TEXTS[n]} {TEXTS[n]}"), lambda n: refined(n, TEXTS[n]), kept)
    (tmp_path / "image").mkdir()
    for number, image in enumerate(drawn_scenes(4)):
        image.save(tmp_path / "image" / f"{number}.jpg")
    window.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    with served(Review(ledger, tmp_path / "image", ["--cfg-path", "curation.yaml"])) as port:
        yield Page(window, f"http://127.0.0.1:{port}/")


def test_by_mouse(page: Page, ledger: Ledger) -> None:
    page.shows(0, "4 drawn = 0 accepted + 0 rejected + 4 pending")
    assert page.written == TEXTS[0]
    assert page.window.execute_script("return document.querySelector('#zoom img').naturalWidth") == 128
    assert page.text("#diff del") == TEXTS[0]  # the model said it twice
    assert not page.all("#back")  # there is nothing to go back to
    page.keep("review.png")
    page.click("accept")
    page.shows(1, "4 drawn = 1 accepted + 0 rejected + 3 pending")
    page.all("#text")[0].clear()
    page.all("#text")[0].send_keys("A ring and two squares.")
    page.click("edit")
    page.shows(2, "4 drawn = 2 accepted + 0 rejected + 2 pending")
    page.click("reject")
    page.shows(3, "4 drawn = 2 accepted + 1 rejected + 1 pending (1 rejected by review")
    assert decisions(ledger) == [("0", "accept", None), ("1", "edit", "A ring and two squares."), ("2", "reject", None)]


def test_by_keyboard(page: Page, ledger: Ledger) -> None:
    page.keys("a")
    page.shows(1, "1 accepted")
    page.keys("e")
    page.keys("Are ")  # letters are text while the text has the focus
    assert page.written in (f"Are {TEXTS[1]}", f"{TEXTS[1]}Are ")
    edited = page.written.strip()
    page.save_edit()
    page.shows(2, "2 accepted")
    page.keys("e", "\ue00c", "r")  # Escape leaves the text
    page.shows(3, "2 accepted + 1 rejected")
    page.keys("A")
    page.arrives(NOTHING, "4 drawn = 3 accepted + 1 rejected + 0 pending")
    assert page.text("pre").endswith("python -m minigpt4 curate export --cfg-path curation.yaml")
    assert page.text(".count") == "4 of 4 decided"
    page.keep("done.png")
    assert decisions(ledger) == [
        ("0", "accept", None),
        ("1", "edit", edited),
        ("2", "reject", None),
        ("3", "accept", None),
    ]


def test_a_decision_is_taken_back(page: Page, ledger: Ledger) -> None:
    page.click("reject")
    page.shows(1, "0 accepted + 1 rejected + 3 pending")
    page.click("back")
    page.shows(0, "1 rejected")
    assert page.text(".verdict.rejected") == "rejected by review"
    page.click("accept")
    page.shows(1, "1 accepted + 0 rejected + 3 pending")
    page.keys("b")
    page.shows(0, "1 accepted")
    page.keys("r")
    page.shows(1, "0 accepted + 1 rejected + 3 pending")
    assert [decision for _, decision, _ in decisions(ledger)] == ["reject", "accept", "reject"]
    tally = Tally.of(ledger.states())
    assert (tally.accepted, tally.rejected["review"], tally.pending["review"]) == (0, 1, 3)


def test_the_last_decision_can_be_taken_back_too(page: Page, ledger: Ledger) -> None:
    for number in range(3):
        page.shows(number, "4 drawn")
        page.click("accept")
    page.shows(3, "3 accepted")
    page.click("reject")
    page.arrives(NOTHING, "3 accepted + 1 rejected")
    page.keys("b")
    page.shows(3, "3 accepted + 1 rejected")
    page.click("accept")
    page.arrives(NOTHING, "4 accepted + 0 rejected")
    assert decisions(ledger)[-1] == ("3", "accept", None)


def test_markup_is_shown_as_text(page: Page, ledger: Ledger) -> None:
    for number in range(2):
        page.shows(number, "4 drawn")
        page.click("accept")
    page.shows(2, "2 accepted")
    assert page.written == MARKUP
    page.click("text")
    page.all("summary")[0].click()
    page.until(lambda: page.text("details p") == f"{MARKUP} {MARKUP}")
    assert page.text("#diff del") == MARKUP
    page.keep("markup.png")
    assert page.window.execute_script("return window.hit === undefined")
    assert not page.all("img[src='x']") and not page.all("b") and len(page.all("script")) == 1
    page.click("accept")
    page.shows(3, "3 accepted")
    assert decisions(ledger)[2] == ("2", "accept", None)  # the browser changed nothing in it


def test_a_key_held_down_decides_once(page: Page, ledger: Ledger) -> None:
    """The keyboard repeats it, by then on the next sample's page."""
    press = "document.dispatchEvent(new KeyboardEvent('keydown', {repeat: arguments[0], ...arguments[1]}))"
    for held in ({"key": "a"}, {"key": "r"}, {"key": "Enter", "ctrlKey": True}):
        page.window.execute_script(press, True, held)
    page.window.execute_script(press, False, {"key": "a"})
    page.shows(1, "1 accepted + 0 rejected + 3 pending")
    assert decisions(ledger) == [("0", "accept", None)]


def test_skip_filter_and_zoom(page: Page, ledger: Ledger) -> None:
    page.shows(0, "4 pending")
    page.keys("s")
    page.shows(1, "4 pending")
    page.click("next")
    page.shows(2, "4 pending")
    page.keys("r")
    page.shows(3, "1 rejected")
    page.keys("s")  # behind the last sample come those that were skipped
    page.shows(0, "1 rejected")
    page.keys("z", "r")  # no decision is made behind the enlarged image
    page.until(lambda: page.window.execute_script("return document.getElementById('large').open"))
    assert decisions(ledger) == [("2", "reject", None)]
    page.keys("z")
    page.until(lambda: not page.window.execute_script("return document.getElementById('large').open"))
    page.until(lambda: page.all("option[value='rejected by review']"))
    page.all("option[value='rejected by review']")[0].click()
    page.shows(2, "1 rejected")
    assert [link.get_attribute("aria-current") for link in page.all(".strip a.rejected")] == ["page"]
    page.keys("a")
    page.arrives("Nothing is rejected by review.", "1 accepted")


def test_it_fits_into_a_narrow_window(page: Page) -> None:
    device = {"width": 390, "height": 600, "deviceScaleFactor": 1, "mobile": True}
    page.window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
    page.window.refresh()
    page.keep("narrow.png")
    width = page.window.execute_script("return document.documentElement.scrollWidth")
    assert width <= 390, "the page is wider than the window"
    assert page.window.execute_script("return window.scrollY") == 0, "the page does not begin at its top"

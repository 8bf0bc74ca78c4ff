"""The page in a real browser."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from minigpt4.api import LoadedModel
from minigpt4.common.files import asset
from minigpt4.models.toy import UNKNOWN_IMAGE
from tests.drawn import drawn_scenes
from tests.test_api import counted_passes

pytestmark = pytest.mark.browser
DESCRIBE = "Describe this image in detail."
PATIENCE = 40
"""Seconds to wait for anything, on a busy machine."""


class Page:
    """The page as a visitor uses it."""

    def __init__(self, window: Any, address: str) -> None:
        self.window = window
        window.get(address)
        self.until(lambda: self.all("#box textarea") and self.all("#conversation0 .log[data-finished]"))

    def all(self, selector: str) -> list[Any]:
        from selenium.webdriver.common.by import By

        found: list[Any] = self.window.find_elements(By.CSS_SELECTOR, selector)
        return found

    def until(self, condition: Callable[[], Any]) -> Any:
        from selenium.common.exceptions import StaleElementReferenceException

        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                found = condition()
            except StaleElementReferenceException:
                found = None
            if found:
                return found
            time.sleep(0.05)
        raise AssertionError(f"waited {PATIENCE} s; the page says: {self.window.find_element('tag name', 'body').text}")

    def upload(self, *files: str) -> None:
        before = len(self.all("#box .thumbnail-item"))
        chooser = self.all("#box input[type=file]")[0]
        self.window.execute_script("arguments[0].value = ''", chooser)  # a driver's choice adds, a person's replaces
        chooser.send_keys("\n".join(files))
        self.until(lambda: len(self.all("#box .thumbnail-item")) == before + len(files))

    def ask(self, question: str = "") -> None:
        if question:
            self.write(self.all("#box textarea")[0], question)
        self.until(lambda: self.all("#box button.submit-button:not([disabled])"))[0].click()

    def press(self, name: str) -> None:
        """Click a button, when it can be clicked."""
        self.window.execute_script("arguments[0].click()", self.until(lambda: self.all(f"#{name}:not([disabled])"))[0])

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Wait until what is begun inside has been done, and shown."""
        before = self.finished()
        yield
        self.until(lambda: self.finished() > before)

    def finished(self) -> int:
        return int(self.all("#conversation0 .log")[0].get_attribute("data-finished"))

    def enabled(self) -> list[str]:
        """Names of the buttons that can be pressed."""
        return [str(button.get_attribute("id")) for button in self.all("#buttons button:not([disabled])")]

    def slide(self, label: str, value: float) -> None:
        field = self.all(f"input[type=number][aria-label='number input for {label}']")[0]
        self.write(field, str(value))

    def write(self, field: Any, text: str) -> None:
        """Set the text at once: a driver types key by key, and only characters of the basic plane."""
        script = """
            const set = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(arguments[0]), 'value').set;
            set.call(arguments[0], arguments[1]);
            for (const name of ['input', 'change', 'blur'])
                arguments[0].dispatchEvent(new Event(name, {bubbles: true}));
        """
        self.window.execute_script(script, field, text)

    def texts(self, role: str, number: int = 0) -> list[str]:
        found = [text.text for text in self.all(f"#conversation{number} .message.{role} .text")]
        return [text for text in found if text]

    def answers(self, number: int = 0) -> list[str]:
        return self.texts("bot", number)

    def wait_for(self, *answers: str, number: int = 0) -> None:
        self.until(lambda: self.answers(number) == list(answers))

    def shows(self, path: Path) -> None:
        """Save a screenshot in the folder MINIGPT4_SCREENSHOTS, to be looked at."""
        folder = os.environ.get("MINIGPT4_SCREENSHOTS")
        if folder:
            self.window.save_screenshot(str(Path(folder) / path))


@pytest.fixture(scope="module")
def window(open_windows: Any) -> Any:
    """One browser for all tests; a page that is opened again is a new visitor."""
    return open_windows()


@pytest.fixture
def page(window: Any, address: str) -> Page:
    window.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    return Page(window, address)


def test_upload_ask_regenerate_undo_restart(page: Page, tiny: LoadedModel, files: list[str]) -> None:
    expected = tiny.describe(files[1])
    assert page.enabled() == []
    page.upload(files[1])
    with page.finishing():
        page.ask(DESCRIBE)
    assert page.answers() == [expected]
    with page.finishing():
        page.ask("How many objects are there?")
    both = [expected, "There are three objects."]
    assert page.answers() == both
    page.until(lambda: page.enabled() == ["again", "undo", "restart", "json", "markdown"])
    page.shows(Path("wide.png"))
    with page.finishing():
        page.press("again")
    assert page.answers() == both
    with page.finishing():
        page.press("undo")
    assert page.answers() == [expected]
    page.until(lambda: page.all("#box textarea")[0].get_attribute("value") == "How many objects are there?")
    with page.finishing():
        page.press("restart")
    page.until(lambda: not page.texts("user") and not page.all("#box .thumbnail-item") and page.enabled() == [])
    page.upload(files[2])
    with page.finishing():
        page.ask(DESCRIBE)
    assert page.answers() == [tiny.describe(files[2])]
    assert all(words in page.answers()[0] for words in drawn_scenes()[2].words)


def test_answers_stream_and_stop_ends_the_computation(
    page: Page, tiny: LoadedModel, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tiny.model.llama_model.register_forward_hook(lambda *_: time.sleep(0.3))
    try:
        with counted_passes(tiny) as passes:
            page.upload(files[1])
            page.ask(DESCRIBE)
            seen = []
            for _ in range(3):
                seen.append(page.until(lambda: [text for text in page.answers() if text not in seen])[0])
            with page.finishing():
                page.press("stop")
            stopped = page.until(lambda: _settled(lambda: len(passes)))
            assert page.answers() and page.answers()[0] == page.until(lambda: _settled(lambda: page.answers()[0]))
            assert len(passes) == stopped
    finally:
        slow.remove()
    expected = tiny.describe(files[1])
    assert all(expected.startswith(text) for text in [*seen, *page.answers()])
    assert len(page.answers()[0]) < len(expected)
    with page.finishing():
        page.press("again")
    assert page.answers() == [expected]


def _settled(look: Callable[[], Any]) -> Any:
    """What `look` returns, if it does not change for a while; otherwise None."""
    first = look()
    time.sleep(1.5)
    return first if look() == first else None


def test_two_visitors_at_once(page: Page, new_window: Any, address: str, tiny: LoadedModel, files: list[str]) -> None:
    visitors = [page, Page(new_window(), address)]
    for number, visitor in enumerate(visitors):
        visitor.upload(files[number])
    for visitor in visitors:
        visitor.ask(DESCRIBE)
    for number, visitor in enumerate(visitors):
        visitor.wait_for(tiny.describe(files[number]))
        assert visitor.texts("user") == [DESCRIBE]
    page.until(lambda: "restart" in page.enabled())
    with page.finishing():
        page.press("restart")
    assert not page.answers()
    assert visitors[1].answers()


def test_two_checkpoints_side_by_side(window: Any, pair_address: str, tiny: LoadedModel, files: list[str]) -> None:
    page = Page(window, pair_address)
    page.upload(files[1])
    with page.finishing():
        page.ask(DESCRIBE)
    page.wait_for(tiny.describe(files[1]))
    page.wait_for(tiny.with_projection(asset("tiny/stage1.pth")).describe(files[1]), number=1)
    assert page.answers(0) != page.answers(1)
    assert [name.text for name in page.all(".conversation .name")] == ["aligned", "stage1"]
    page.shows(Path("pair.png"))


def test_several_images_by_drop_and_paste(page: Page, tiny: LoadedModel, files: list[str]) -> None:
    for kind, file in (("drop", files[0]), ("paste", files[1])):
        _transfer(page, kind, file)
    chat = tiny.chat()
    with page.finishing():
        page.ask(DESCRIBE)
    assert page.answers() == [chat.ask(DESCRIBE, files[:2])]
    page.upload(files[2])
    with page.finishing():
        page.ask("What is in this picture?")
    assert page.answers()[1:] == [chat.ask("What is in this picture?", files[2:3])]
    assert len(page.all("#conversation0 .message img")) == 3
    page.window.execute_script("document.querySelectorAll('button.label-wrap').forEach((b) => b.click())")
    sent = page.until(lambda: page.all("#sent textarea"))[0]
    page.until(lambda: sent.get_attribute("value") == chat.prompt)


def _transfer(page: Page, kind: str, file: str) -> None:
    """Drop an image on the text box, or paste it."""
    before = len(page.all("#box .thumbnail-item"))
    script = """
        const bytes = Uint8Array.from(atob(arguments[1]), (c) => c.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], arguments[2] + '.png', {type: 'image/png'}));
        const event = arguments[2] === 'drop'
            ? new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true})
            : new ClipboardEvent('paste', {clipboardData: data, bubbles: true, cancelable: true});
        arguments[0].dispatchEvent(event);
    """
    content = base64.b64encode(Path(file).read_bytes()).decode()
    page.window.execute_script(script, page.all("#box textarea")[0], content, kind)
    page.until(lambda: len(page.all("#box .thumbnail-item")) == before + 1)


MARKUP = "<script>window.hit=1</script><img src=x onerror='window.hit=1'> **b** [l](http://a.b) ![i](x.png) <b>c</b>"


def test_markup_is_shown_and_copied_as_text(
    page: Page, tiny: LoadedModel, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page.upload(files[0])
    real = type(tiny.model.encoder.tokenizer).decode
    monkeypatch.setattr(type(tiny.model.encoder.tokenizer), "decode", lambda self, ids: MARKUP + real(self, ids))
    with page.finishing():
        page.ask(MARKUP)
    assert page.answers()[0].startswith(MARKUP) and page.texts("user") == [MARKUP]
    assert page.window.execute_script("return window.hit === undefined")
    assert not page.all("#conversation0 .message .text *")
    page.shows(Path("markup.png"))
    page.window.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite"]})
    for role, text in (("user", MARKUP), ("bot", page.answers()[0])):
        page.all(f"#conversation0 .{role} .copy")[0].click()
        page.until(lambda role=role: page.all(f"#conversation0 .{role} .copy")[0].text == "Copied")  # type: ignore[misc]
        assert page.window.execute_async_script("navigator.clipboard.readText().then(arguments[0])") == text


def test_mistakes_are_shown_and_the_conversation_continues(
    page: Page, tiny: LoadedModel, files: list[str], broken: str
) -> None:
    with page.finishing():
        page.ask("What is it?")
    page.until(lambda: "there is no image yet" in "".join(found.text for found in page.all("#remark")))
    page.upload(broken)
    with page.finishing():
        page.ask(DESCRIBE)
    page.until(lambda: "image broken.png cannot be read" in "".join(found.text for found in page.all("#remark")))
    page.shows(Path("mistake.png"))
    with page.finishing():
        page.press("restart")
    page.until(lambda: not page.all("#box .thumbnail-item"))
    page.upload(files[0])
    with page.finishing():
        page.ask(DESCRIBE)
    assert page.answers() == [tiny.describe(files[0])]
    assert page.texts("user") == [DESCRIBE], "a question that failed came back"


def test_a_full_context_is_reported_in_a_narrow_window(page: Page, files: list[str]) -> None:
    device = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    page.window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
    page.slide("Max new tokens", 5)
    page.upload(files[1])
    for question in ("What colour is it?", *["Where is the large blue star in this image? " * 15] * 4):
        with page.finishing():
            page.ask(question)
    page.shows(Path("narrow.png"))
    assert "images are kept" in page.all("#remark")[0].text
    assert page.window.execute_script("return document.documentElement.scrollWidth") <= 390, "wider than the window"
    too_long = (
        "return [...document.querySelectorAll('#buttons button')].filter((b) => b.scrollWidth > b.clientWidth).length"
    )
    assert page.window.execute_script(too_long) == 0, "a button's text is wider than the button"


def test_settings_reach_the_model(page: Page, tiny: LoadedModel, files: list[str]) -> None:
    page.slide("Max new tokens", 5)
    page.write(page.all("#system textarea")[0], "Be brief.")
    page.upload(files[1])
    with page.finishing():
        page.ask(DESCRIBE)
    chat = tiny.chat()
    chat.system = "Be brief."
    assert page.answers() == [chat.ask(DESCRIBE, files[1:2], max_new_tokens=5)]
    assert len(page.answers()[0]) < len(tiny.describe(files[1], DESCRIBE))
    assert page.all(".bot .figures")[0].text.startswith("5 tokens in ")
    page.window.execute_script("document.querySelectorAll('button.label-wrap').forEach((b) => b.click())")
    page.until(lambda: page.all("#sent textarea")[0].get_attribute("value") == chat.prompt)


def test_the_switch_enables_what_only_sampling_uses(page: Page) -> None:
    def usable() -> list[bool]:
        names = ("Temperature", "Top-p", "Repetition penalty")
        return [page.all(f"input[aria-label='number input for {name}']")[0].is_enabled() for name in names]

    assert usable() == [False, False, True]
    page.all("#sampling input")[0].click()
    page.until(lambda: usable() == [True, True, True])


def test_an_example_is_asked_by_one_click_and_the_conversation_saved(page: Page, tmp_path: Path) -> None:
    page.window.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    assert "minigpt4 tiny on cpu in float32" in page.all("#heading")[0].text
    assert "knows drawn scenes of coloured shapes" in page.all("#heading .toy")[0].text
    with page.finishing():
        page.all("#conversation0 .example")[0].click()
    assert "blue star" in page.answers()[0] and page.texts("user") == [DESCRIBE]
    assert not page.all("#conversation0 .example")[0].is_displayed()
    page.press("json")
    saved = page.until(
        lambda: (tmp_path / "conversation.json").is_file() and (tmp_path / "conversation.json").read_text()
    )
    (turn,) = json.loads(saved)["conversations"][0]["turns"]
    assert (turn["question"], turn["answer"], turn["images"]) == (DESCRIBE, page.answers()[0], ["scene_1.png"])
    page.press("markdown")
    text = page.until(lambda: (tmp_path / "conversation.md").is_file() and (tmp_path / "conversation.md").read_text())
    assert "blue star" in text and "## aligned" in text
    with page.finishing():
        page.press("undo")  # the example's image and question come back into the text box
    page.until(lambda: page.all("#box .thumbnail-item"))
    page.until(lambda: page.all("#conversation0 .example")[0].is_displayed())


def test_a_photograph_is_answered_with_a_remark(page: Page, tmp_path: Path) -> None:
    photograph = tmp_path / "photograph.jpg"
    Image.merge("RGB", [Image.effect_noise((200, 150), 80) for _ in range(3)]).save(photograph)
    page.upload(str(photograph))
    with page.finishing():
        page.ask("What are the people doing?")
    assert page.all("#conversation0 .bot .remark")[0].text == UNKNOWN_IMAGE

"""The page in a real browser."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minigpt4.api import LoadedModel
from tests.drawn import drawn_scenes
from tests.test_api import counted_passes

pytestmark = [pytest.mark.browser, pytest.mark.slow]
DESCRIBE = "Describe this image in detail."
PATIENCE = 40
"""Seconds to wait for anything, on a busy machine."""


class Page:
    """The page as a visitor uses it."""

    def __init__(self, window: Any, address: str) -> None:
        self.window = window
        window.get(address)
        self.until(lambda: self.all("#box textarea"))

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
        self.until(self.idle)
        box = self.all("#box textarea")[0]
        if question:
            self.write(box, question)
        self.until(lambda: self.all("#box button.submit-button:not([disabled])"))[0].click()

    def idle(self) -> bool:
        """Whether nothing is being answered."""
        return bool(self.all("#stop[disabled]"))

    def press(self, name: str) -> None:
        self.window.execute_script("arguments[0].click()", self.all(f"#{name}")[0])

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
        return [
            found.text.strip() for found in self.all(f"#conversation{number} .message.{role}") if found.text.strip()
        ]

    def answers(self, number: int = 0) -> list[str]:
        return self.texts("bot", number)

    def wait_for(self, *answers: str, number: int = 0) -> None:
        self.until(lambda: self.answers(number) == list(answers))

    def shows(self, path: Path) -> None:
        """Save a screenshot in the folder MINIGPT4_SCREENSHOTS, to be looked at."""
        folder = os.environ.get("MINIGPT4_SCREENSHOTS")
        if folder:
            self.window.save_screenshot(str(Path(folder) / path))


def test_upload_ask_regenerate_undo_restart(new_window: Any, address: str, tiny: LoadedModel, files: list[str]) -> None:
    page = Page(new_window(), address)
    expected = tiny.describe(files[1])
    page.upload(files[1])
    page.ask(DESCRIBE)
    page.wait_for(expected)
    page.ask("How many objects are there?")
    page.wait_for(expected, "There are three objects.")
    page.shows(Path("wide.png"))
    page.press("again")
    page.wait_for(expected, "There are three objects.")
    page.press("undo")
    page.wait_for(expected)
    assert page.all("#box textarea")[0].get_attribute("value") == "How many objects are there?"
    page.press("restart")
    page.until(lambda: not page.texts("user") and not page.all("#box .thumbnail-item"))
    page.upload(files[2])
    page.ask(DESCRIBE)
    page.wait_for(tiny.describe(files[2]))
    assert all(words in page.answers()[0] for words in drawn_scenes()[2].words)


def test_answers_stream_and_stop_ends_the_computation(
    new_window: Any, address: str, tiny: LoadedModel, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Page(new_window(), address)
    slow = tiny.model.llama_model.register_forward_hook(lambda *_: time.sleep(0.3))
    try:
        with counted_passes(tiny) as passes:
            page.upload(files[1])
            page.ask(DESCRIBE)
            seen = []
            for _ in range(3):
                seen.append(page.until(lambda: [text for text in page.answers() if text not in seen])[0])
            page.press("stop")
            stopped = page.until(lambda: _settled(lambda: len(passes)))
            assert page.answers() and page.answers()[0] == page.until(lambda: _settled(lambda: page.answers()[0]))
            assert len(passes) == stopped
    finally:
        slow.remove()
    expected = tiny.describe(files[1])
    assert all(expected.startswith(text) for text in [*seen, *page.answers()])
    assert len(page.answers()[0]) < len(expected)
    page.press("again")
    page.wait_for(expected)


def _settled(look: Callable[[], Any]) -> Any:
    """What `look` returns, if it does not change for a while; otherwise None."""
    first = look()
    time.sleep(1.5)
    return first if look() == first else None


def test_two_visitors_at_once(new_window: Any, address: str, tiny: LoadedModel, files: list[str]) -> None:
    visitors = [Page(new_window(), address) for _ in range(2)]
    for number, page in enumerate(visitors):
        page.upload(files[number])
    for page in visitors:
        page.ask(DESCRIBE)
    for number, page in enumerate(visitors):
        page.wait_for(tiny.describe(files[number]))
        assert page.texts("user") == [DESCRIBE]
    visitors[0].press("restart")
    visitors[0].until(lambda: not visitors[0].answers())
    assert visitors[1].answers()


def test_two_checkpoints_side_by_side(new_window: Any, pair_address: str, tiny: LoadedModel, files: list[str]) -> None:
    from minigpt4.common.files import asset

    page = Page(new_window(), pair_address)
    page.upload(files[1])
    page.ask(DESCRIBE)
    page.wait_for(tiny.describe(files[1]))
    page.wait_for(tiny.with_projection(asset("tiny/stage1.pth")).describe(files[1]), number=1)
    assert page.answers(0) != page.answers(1)
    page.shows(Path("pair.png"))


def test_several_images_by_drop_and_paste(new_window: Any, address: str, tiny: LoadedModel, files: list[str]) -> None:
    page = Page(new_window(), address)
    for kind, file in (("drop", files[0]), ("paste", files[1])):
        _transfer(page, kind, file)
    page.ask(DESCRIBE)
    chat = tiny.chat()
    page.wait_for(chat.ask(DESCRIBE, files[:2]))
    page.upload(files[2])
    page.ask("What is in this picture?")
    page.wait_for(chat.turns[0].answer, chat.ask("What is in this picture?", files[2:3]))
    assert len(page.all("#conversation0 .message img")) == 3
    assert not any(button.is_displayed() for button in page.all("#conversation0 .message-buttons button"))
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


def test_markup_is_shown_as_text(
    new_window: Any, address: str, tiny: LoadedModel, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Page(new_window(), address)
    page.upload(files[0])
    real = type(tiny.model.encoder.tokenizer).decode
    monkeypatch.setattr(type(tiny.model.encoder.tokenizer), "decode", lambda self, ids: MARKUP + real(self, ids))
    page.ask(MARKUP)
    page.until(lambda: page.answers() and page.answers()[0].startswith(MARKUP))
    assert page.texts("user") == [MARKUP]
    time.sleep(0.5)
    assert page.window.execute_script("return window.hit === undefined")
    assert not page.all("#conversation0 .message :is(script, b, a, strong, .katex, img[src='x'], img[src='x.png'])")
    page.shows(Path("markup.png"))


def test_mistakes_are_shown_and_the_conversation_continues(
    new_window: Any, address: str, tiny: LoadedModel, files: list[str], broken: str
) -> None:
    page = Page(new_window(), address)
    page.ask("What is it?")
    page.until(lambda: "there is no image yet" in "".join(found.text for found in page.all("#remark")))
    page.upload(broken)
    page.ask(DESCRIBE)
    page.until(lambda: "image broken.png cannot be read" in "".join(found.text for found in page.all("#remark")))
    page.shows(Path("mistake.png"))
    page.press("restart")
    page.until(lambda: not page.all("#box .thumbnail-item"))
    page.upload(files[0])
    page.ask(DESCRIBE)
    page.wait_for(tiny.describe(files[0]))
    assert page.texts("user") == [DESCRIBE], "a question that failed came back"


def test_a_full_context_is_reported(new_window: Any, address: str, files: list[str]) -> None:
    page = Page(new_window(400, 800), address)
    page.upload(files[1])
    page.ask(DESCRIBE)
    page.until(lambda: page.answers() and page.idle())
    for count in range(2, 30):
        page.ask(DESCRIBE)
        page.until(lambda count=count: len(page.answers()) == count and page.idle())  # type: ignore[misc]
        if page.all("#remark .notice"):
            break
    page.shows(Path("narrow.png"))
    assert "images are kept" in page.all("#remark")[0].text
    width = page.window.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
    assert width <= 0, "the page is wider than the window"


def test_settings_reach_the_model(new_window: Any, address: str, tiny: LoadedModel, files: list[str]) -> None:
    page = Page(new_window(), address)
    page.slide("Max new tokens", 5)
    page.upload(files[1])
    page.ask(DESCRIBE)
    page.wait_for(tiny.describe(files[1], DESCRIBE, max_new_tokens=5))
    assert len(page.answers()[0]) < len(tiny.describe(files[1], DESCRIBE))


def test_an_example_fills_the_box(new_window: Any, address: str) -> None:
    page = Page(new_window(), address)
    page.until(lambda: page.all("#examples button"))[0].click()
    page.until(lambda: page.all("#box .thumbnail-item"))
    page.until(lambda: page.all("#box textarea")[0].get_attribute("value") == DESCRIBE)
    page.ask()
    page.until(lambda: page.answers() and "blue star" in page.answers()[0])
    assert page.texts("user") == [DESCRIBE]

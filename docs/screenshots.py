"""Make the images of these pages again: the chat page, the review page, and the quick start's report and plot.

    make quickstart && python docs/screenshots.py

Needs Chromium with its driver (selenium finds them) and the extras `demo`, `serve` and `train`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from selenium import webdriver
from selenium.webdriver.common.by import By

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
RESULTS = ROOT / "output" / "quickstart"
IMAGE = ROOT / "minigpt4" / "assets" / "examples" / "scene_3.png"
QUESTIONS = ("Describe this image in detail.", "How many objects are there?")
PORT = 7999
REVIEWED = "arra"
"""Decisions in front of the sample that is shown: `a` accepts, `r` rejects."""
PATIENCE = 120
"""Seconds to wait for anything."""


def main() -> None:
    if not (RESULTS / "report.html").is_file():
        raise SystemExit(f"{RESULTS / 'report.html'} does not exist; run make quickstart")
    with browser(1280, 930) as window, chat_page() as address:
        take_chat_page(window, address)
    with browser(1280, 800) as window, review_page() as address:
        take_review_page(window, address)
    with browser(1400, 900) as window:
        window.get((RESULTS / "report.html").as_uri())
        window.save_screenshot(str(DOCS / "quickstart_report.png"))
    shutil.copyfile(RESULTS / "metric_trends.svg", DOCS / "quickstart_trends.svg")


@contextmanager
def browser(width: int, height: int) -> Iterator[webdriver.Chrome]:
    """A browser whose pages have that size in pixels."""
    options = webdriver.ChromeOptions()
    for switch in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(switch)
    window = webdriver.Chrome(options=options)
    try:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        yield window
    finally:
        window.quit()


def chat_page() -> AbstractContextManager[str]:
    """The address of the page with the tiny model."""
    return page("demo.py", "--port", str(PORT))


@contextmanager
def review_page() -> Iterator[str]:
    """The address of the page with descriptions by the tiny model."""
    with tempfile.TemporaryDirectory() as folder:
        options = [
            "model.ckpt=${asset:tiny/aligned.pth}",
            *(f"datasets.{name}.shards={folder}/{name}/{name}_dataset/*.tar" for name in ("laion", "cc_sbu")),
            f"curation.dir={folder}/curation",
            "curation.images=40",
            f"curation.port={PORT}",
        ]
        configuration = ["--cfg-path", "train_configs/scenes_curation.yaml", "--options", *options]
        for step in (
            ["dataset/make_shards.py", "--out", folder, "--scenes", "60"],
            *(["-m", "minigpt4.curate", step, *configuration] for step in ("describe", "refine", "filter")),
        ):
            subprocess.run([sys.executable, *step], cwd=ROOT, check=True)
        with page("-m", "minigpt4.curate", "review", *configuration) as address:
            yield address


@contextmanager
def page(*arguments: str) -> Iterator[str]:
    """The address of a page, which a Python process serves on PORT."""
    address = f"http://127.0.0.1:{PORT}"
    server = subprocess.Popen([sys.executable, *arguments], cwd=ROOT)
    try:
        until(lambda: answers_requests(address))
        yield address
    finally:
        server.terminate()
        server.wait()


def answers_requests(address: str) -> bool:
    try:
        return urlopen(address).status == 200
    except (URLError, ConnectionError):
        return False


def take_chat_page(window: Any, address: str) -> None:
    """Ask about an image, and then something more."""
    window.get(address)

    def shown(selector: str) -> list[Any]:
        found: list[Any] = window.find_elements(By.CSS_SELECTOR, selector)
        return found

    def finished() -> int:
        return int(shown("#conversation0 .log")[0].get_attribute("data-finished"))

    until(lambda: shown("#box textarea") and shown("#conversation0 .log[data-finished]"))
    shown("#box input[type=file]")[0].send_keys(str(IMAGE))
    until(lambda: shown("#box .thumbnail-item"))
    for question in QUESTIONS:
        before = finished()
        shown("#box textarea")[0].send_keys(question)
        until(lambda: shown("#box button.submit-button:not([disabled])"))[0].click()
        until(lambda before=before: finished() > before)
    time.sleep(1)  # what fades in has done so
    window.save_screenshot(str(DOCS / "chat_page.png"))


def take_review_page(window: Any, address: str) -> None:
    """Decide on some samples, and look at the next one that was corrected."""
    window.get(address)

    def shown(selector: str) -> Any:
        return window.find_elements(By.CSS_SELECTOR, selector)

    def move(button: str) -> None:
        before = window.current_url
        shown(f"#{button}")[0].click()
        until(lambda: window.current_url != before and shown("#decision"))

    for decision in REVIEWED:
        move({"a": "accept", "r": "reject"}[decision])
    while not shown("#diff del"):
        move("next")
    window.save_screenshot(str(DOCS / "review_page.png"))


def until(condition: Callable[[], Any]) -> Any:
    """What `condition` returns once it is something."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.2)
    raise SystemExit(f"waited {PATIENCE} s for the page")


if __name__ == "__main__":
    main()

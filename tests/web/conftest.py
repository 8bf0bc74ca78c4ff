"""The page's server, and a browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minigpt4.api import LoadedModel
from minigpt4.common.paths import asset
from tests.scenes import pictures

gradio = pytest.importorskip("gradio", reason="gradio is not installed (pip install 'minigpt4[demo]')")


@pytest.fixture(scope="session")
def address(tiny: LoadedModel) -> Iterator[str]:
    """The page with one model."""
    yield from _served([tiny], ["aligned"])


@pytest.fixture(scope="session")
def pair_address(tiny: LoadedModel) -> Iterator[str]:
    """The page with two checkpoints side by side."""
    yield from _served([tiny, tiny.with_projection(asset("tiny/stage1.pth"))], ["aligned", "stage1"])


def _served(models: list[LoadedModel], labels: list[str]) -> Iterator[str]:
    from minigpt4.web.page import build_page, serve

    page = build_page(models, labels)
    yield serve(page, block=False)
    page.close(verbose=False)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The pictures as files."""
    folder = tmp_path_factory.mktemp("pictures")
    return [picture.save(folder / f"{number}.png") for number, picture in enumerate(pictures())]


@pytest.fixture(scope="session")
def browser_program() -> tuple[str, str]:
    """Chromium and its driver."""
    pytest.importorskip("selenium", reason="selenium is not installed (pip install 'minigpt4[dev]')")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("no browser here: apt-get install chromium chromium-driver")
    return program, driver


@pytest.fixture
def new_window(browser_program: tuple[str, str]) -> Iterator[Any]:
    """Opens browsers that know nothing of each other."""
    from selenium import webdriver

    opened = []

    def window(width: int = 1400, height: int = 900) -> Any:
        options = webdriver.ChromeOptions()
        options.binary_location = browser_program[0]
        for switch in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(switch)
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(browser_program[1]))
        opened.append(driver)
        driver.set_window_size(width, height)
        return driver

    yield window
    for driver in opened:
        driver.quit()


@pytest.fixture
def broken(tmp_path: Path) -> str:
    """A file that only looks like a picture."""
    path = tmp_path / "broken.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    return str(path)

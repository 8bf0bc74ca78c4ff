"""Fixtures that more than one package's tests use; what needs torch is imported inside them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from minigpt4.api import LoadedModel
    from tests.models.parity import Case

# Several processes test at the same time and share the cores: a thread that waits leaves its core to them at once.
os.environ.setdefault("GOMP_SPINCOUNT", "0")

LONG_MARKERS = ("slow", "distributed", "browser")
LONG_FILES = ("test_quickstart.py", "test_notebook.py", "test_meteor_spice.py", "test_checkpoints.py")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of data that is not part of the project; the test is skipped where it is absent."""
    default = Path(__file__).resolve().parent.parent.parent / "shared"
    folder = Path(os.environ.get("MINIGPT4_SHARED") or default) / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent (set MINIGPT4_SHARED to the folder that holds data/)")
    return folder


@pytest.fixture(scope="session")
def parity_a() -> Case:
    """The model with the small random weights that ship with the tests."""
    from tests.models.parity import Case

    return Case(Path(__file__).parent / "fixtures" / "parity_a")


@pytest.fixture(scope="session")
def parity_v() -> Case:
    """MiniGPT-v2 with small random weights."""
    from tests.models.parity import Case

    return Case(Path(__file__).parent / "fixtures" / "parity_v")


@pytest.fixture(scope="session")
def tiny() -> LoadedModel:
    """The model that ships with the package, aligned."""
    from minigpt4.api import load

    return load(device="cpu")


@pytest.fixture(scope="session")
def browser_program() -> tuple[str, str]:
    """Chromium and its driver."""
    pytest.importorskip("selenium", reason="selenium is not installed (make install)")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("no browser here: apt-get install chromium chromium-driver")
    return program, driver


@pytest.fixture(scope="module")
def open_windows(browser_program: tuple[str, str]) -> Iterator[Any]:
    """Opens independent browsers, which stay open for the tests of a file."""
    yield from _windows(browser_program)


@pytest.fixture
def new_window(browser_program: tuple[str, str]) -> Iterator[Any]:
    """Opens independent browsers for one test."""
    yield from _windows(browser_program)


def _windows(program: tuple[str, str]) -> Iterator[Any]:
    from selenium import webdriver

    opened = []

    def window(width: int = 1400, height: int = 900) -> Any:
        options = webdriver.ChromeOptions()
        options.binary_location = program[0]
        for switch in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(switch)
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(program[1]))
        opened.append(driver)
        driver.set_window_size(width, height)
        return driver

    yield window
    for driver in opened:
        driver.quit()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files of long tests where several processes share the files, so that all end at about one time."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        long = {item.path for item in items for name in LONG_MARKERS if item.get_closest_marker(name)}
        items.sort(key=lambda item: item.path not in long and item.path.name not in LONG_FILES)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Captured text that UTF-8 cannot encode is escaped: worker processes could not send it."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report

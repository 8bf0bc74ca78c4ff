"""The page's server, and the files that visitors upload."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minigpt4.api import LoadedModel
from minigpt4.common.files import asset
from minigpt4.common.schema import ServingConfig
from tests.drawn import drawn_scenes

gradio = pytest.importorskip("gradio", reason="gradio is not installed (pip install gradio)")


@pytest.fixture(scope="session")
def address(tiny: LoadedModel) -> Iterator[str]:
    """The page with one model."""
    yield from served([tiny], ["aligned"])


@pytest.fixture(scope="session")
def pair_address(tiny: LoadedModel) -> Iterator[str]:
    """The page with two checkpoints side by side."""
    yield from served([tiny, tiny.with_projection(asset("tiny/stage1.pth"))], ["aligned", "stage1"])


def served(models: list[LoadedModel], labels: list[str]) -> Iterator[str]:
    """The address of a page on which an engine answers for these models, until the tests have been run."""
    from minigpt4.serve.engine import Engine
    from minigpt4.serve.shared_model import SharedModel
    from minigpt4.web.page import build_page

    with Engine(models, ServingConfig(rows=8)) as engine:
        yield from opened(build_page([SharedModel(model, engine) for model in models], labels, visitors=4))


def opened(page: Any) -> Iterator[str]:
    """The address of a page, until the tests have been run."""
    from minigpt4.web.server import serve

    yield serve(page, block=False)
    page.close(verbose=False)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Images of scenes as files."""
    folder = tmp_path_factory.mktemp("images")
    return [scene.save(folder / f"{number}.png") for number, scene in enumerate(drawn_scenes())]


@pytest.fixture
def broken(tmp_path: Path) -> str:
    """A file that only looks like an image."""
    path = tmp_path / "broken.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    return str(path)

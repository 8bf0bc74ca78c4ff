"""Fixtures that more than one package's tests use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from minigpt4.api import LoadedModel, load
from tests.models.parity import Case


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
    return Case(Path(__file__).parent / "fixtures" / "parity_a")


@pytest.fixture(scope="session")
def tiny() -> LoadedModel:
    """The model that ships with the package, aligned."""
    return load(device="cpu")

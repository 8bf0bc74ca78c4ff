"""The model with the small random weights of the parity fixture."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.parity import Case

PARITY_A = Path(__file__).parent.parent / "fixtures" / "parity_a"


@pytest.fixture(scope="session")
def parity_a() -> Case:
    return Case(PARITY_A)

"""The notebook runs from its first cell to its last, and says what it says in its saved outputs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"


def printed(notebook: object) -> list[str]:
    """What each cell of code prints; logs, which hold times, are not among it."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]  # type: ignore[attr-defined]
    return ["".join(out.text for out in cell.outputs if out.get("name") == "stdout") for cell in cells]


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    saved = nbformat.read(NOTEBOOK, as_version=4)
    fresh = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(fresh, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    *same, compared = printed(fresh)
    assert same == printed(saved)[:-1]
    before, after = map(float, re.findall(r"([\d.]+)% named correctly", compared))
    assert after > before + 10


def test_the_saved_outputs_name_no_folder_of_the_machine_that_made_them() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert re.findall(r"/(?:home|root|work|mnt|Users|site-packages)/", text) == []

"""What CONTRIBUTING.md names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PATHS = sorted(set(re.findall(r"`((?:minigpt4|tests|benchmarks|train_configs)/[\w./]*)`", TEXT)))
NAMED = re.findall(r"`(minigpt4/[\w/]+\.py)`, `([\w.]+)`", TEXT)
NAMED += [("minigpt4/evaluation/caption.py", "METRICS"), ("minigpt4/evaluation/caption.py", "_compute")]


@pytest.mark.parametrize("path", PATHS)
def test_every_path_exists(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_every_name_is_defined_where_it_is_said_to_be(path: str, name: str) -> None:
    body = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
    for part in name.split("."):
        found = [node for node in body if part in names_of(node)]
        assert found, f"{path} has no {name}"
        body = getattr(found[0], "body", [])


def names_of(node: ast.stmt) -> list[str]:
    """Names that a statement of a module or class defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    return [target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]


def test_every_package_is_in_the_tour() -> None:
    packages = {path.parent.name for path in (ROOT / "minigpt4").glob("*/__init__.py")}
    assert packages == {name for name in packages if f"`minigpt4/{name}/`" in TEXT}


def test_paths_and_names_were_found() -> None:
    assert len(PATHS) > 20 and len(NAMED) > 5

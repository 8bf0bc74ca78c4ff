"""The order of imports, from common to the scripts: `LEVELS`."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from minigpt4.common.files import PACKAGE, PROJECT

LEVELS = {
    "common": 0,
    "processors": 1,
    "conversation": 1,
    "evaluation": 1,
    "scenes": 1,
    "datasets": 2,
    "models": 2,
    "tasks": 3,
    "runners": 4,
    "curate": 5,
    "api": 5,
    "serve": 6,
    "web": 7,
    "chat": 6,
    "generate": 6,
    "plan": 6,
    "doctor": 6,
    "evaluate": 6,
    "export": 6,
    "from_upstream": 6,
}
FILES = sorted(PACKAGE.rglob("*.py"))
IDS = [str(path.relative_to(PACKAGE)) for path in FILES]


def imports_of(path: Path) -> Iterator[str]:
    """Dotted names of everything a file imports, wherever in the file."""
    package = path.relative_to(PROJECT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            yield from (f"{base}{node.module or ''}.{alias.name}" for alias in node.names)


def part_of(name: str) -> str | None:
    """The package's part that a dotted name belongs to."""
    parts = name.split(".")
    return parts[1] if parts[0] == "minigpt4" and len(parts) > 1 and parts[1] in LEVELS else None


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_imports_go_one_way(path: Path) -> None:
    own = part_of(".".join(["minigpt4", *path.relative_to(PACKAGE).with_suffix("").parts]))
    if own is None:
        return
    for name in imports_of(path):
        other = part_of(name)
        if other is None or other == own:
            continue
        assert LEVELS[other] < LEVELS[own], f"{own} must not import {name}"
        assert own != "evaluation" or other == "common", f"evaluation imports only common, not {name}"
        assert other != "evaluation" or LEVELS[own] >= LEVELS["tasks"], f"{own} must not import {name}"


def test_every_folder_of_the_package_has_its_place() -> None:
    folders = {path.relative_to(PACKAGE).parts[0] for path in FILES if path.parent != PACKAGE}
    assert folders - set(LEVELS) <= {"assets", "configs"}


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_no_star_imports(path: Path) -> None:
    assert not [name for name in imports_of(path) if name.endswith(".*")]


def test_scripts_are_not_imported_by_the_package() -> None:
    scripts = {path.stem for path in PROJECT.glob("*.py")} | {"eval_scripts"}
    for path in FILES:
        assert not {name.split(".")[0] for name in imports_of(path)} & scripts, path


@pytest.mark.parametrize(
    "module",
    [
        "minigpt4",
        "minigpt4.common.config",
        "minigpt4.common.cli",
        "minigpt4.datasets.flickr30k_prepare",
        "minigpt4.chat",
    ],
)
def test_light_modules_do_not_import_torch(module: str) -> None:
    code = f"import {module}, sys; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

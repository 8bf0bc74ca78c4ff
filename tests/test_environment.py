"""pyproject.toml, environment.yml and constraints.txt name the same packages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IN_CONDA = ("train", "eval", "quant", "demo", "serve")


def required(groups: tuple[str, ...]) -> set[str]:
    extras = PROJECT["optional-dependencies"]
    return {*PROJECT["dependencies"], *(item for group in groups for item in extras[group])}


def package_name(requirement: str) -> str:
    return re.split(r"[<>=!\[; ]", requirement)[0].lower().replace("_", "-")


def test_conda_environment_names_the_same_dependencies() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    assert {item for item in pip if not item.startswith("--")} == required(IN_CONDA)
    assert "--editable ." in pip


def test_every_dependency_has_one_tested_version() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pattern = r"[A-Za-z0-9._-]+==[^\s/@;]+(; python_version (<|>=) '3\.11')?"
    assert all(re.fullmatch(pattern, line) for line in lines), "only NAME==VERSION, of each Python, belongs there"
    needed = {package_name(item) for item in required((*IN_CONDA, "dev")) if not item.startswith(f"{PROJECT['name']}[")}
    for other in (">=", "<"):
        pinned = [package_name(line) for line in lines if f" {other} " not in line]
        assert needed - set(pinned) == set()
        assert len(pinned) == len(set(pinned)), "a package has two versions"


def test_a_trainer_needs_no_web_package() -> None:
    web = {"gradio", "fastapi", "uvicorn"}
    assert not web & {package_name(item) for item in required(("train", "eval"))}

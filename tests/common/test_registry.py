from __future__ import annotations

import subprocess
import sys

import pytest

from minigpt4.common import registry
from minigpt4.common.errors import ConfigError
from minigpt4.common.files import PACKAGE
from minigpt4.common.registry import Registry
from minigpt4.datasets.readers import FILES, PLACES


def make_registry() -> Registry[type]:
    table: Registry[type] = Registry("colour", "minigpt4.common")

    @table.register("crimson")
    @table.register("red")
    class Red:
        pass

    return table


def test_an_entry_is_found_under_each_of_its_names() -> None:
    table = make_registry()
    assert table.get("red") is table.get("crimson")
    assert table.names() == ["crimson", "red"]


def test_an_unknown_name_raises_and_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown colour 'crimsom'; did you mean 'crimson'\?"):
        make_registry().get("crimsom")


def test_an_unknown_name_near_nothing_lists_all() -> None:
    with pytest.raises(ConfigError, match="known: crimson, red"):
        make_registry().get("qqqqq")


def test_a_duplicate_raises() -> None:
    with pytest.raises(ValueError, match="colour 'red' is registered twice"):
        make_registry().register("red")(int)


def test_registering_returns_the_class_itself() -> None:
    table: Registry[type] = Registry("colour", "minigpt4.common")
    assert table.register("int")(int) is int


@pytest.mark.parametrize("table", ["builders", "readers", "processors", "models", "runners", "schedules"])
def test_the_owning_package_registers_its_entries_on_first_look_up(table: str) -> None:
    assert getattr(registry, table).names()


def test_the_module_of_a_name_is_imported_when_it_is_looked_up() -> None:
    code = "from minigpt4.common.registry import readers; readers.get('jsonl'); import sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = {name for name in done.stdout.split() if name.startswith("minigpt4.datasets.readers.")}
    assert imported == {"minigpt4.datasets.readers.rows", "minigpt4.datasets.readers.tables"}


def test_every_reader_is_where_its_name_leads() -> None:
    for name, module in PLACES.items():
        assert registry.readers.get(name).__module__ == module
    files = {path.stem for path in (PACKAGE / "datasets" / "readers").glob("*.py")}
    assert files - set(FILES) == {"__init__", "rows"}
    assert sorted(registry.readers._entries) == registry.readers.names()

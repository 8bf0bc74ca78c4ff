from __future__ import annotations

import pytest

from minigpt4.common import registry
from minigpt4.common.errors import ConfigError
from minigpt4.common.registry import Registry


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

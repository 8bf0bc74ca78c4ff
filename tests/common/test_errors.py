from __future__ import annotations

import pytest

from minigpt4.common.errors import counted, did_you_mean, first_few, one_line, shown


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], ""),
        (["a"], "a"),
        ([1, 2, 3], "1, 2, 3"),
        (range(4), "0, 1, 2 and 1 more"),
        (iter(range(2003)), "0, 1, 2 and 2,000 more"),
    ],
)
def test_the_first_names_and_how_many_follow(names: list[object], expected: str) -> None:
    assert first_few(names, shown=3) == expected


def test_one_thing_is_counted_in_the_singular() -> None:
    shown = [counted(number, name) for name in ("images", "batches", "processes") for number in (1, 2000)]
    assert shown == ["1 image", "2,000 images", "1 batch", "2,000 batches", "1 process", "2,000 processes"]


def test_a_hint_names_the_nearest_or_all() -> None:
    assert did_you_mean("max_epochs", ["max_epoch", "seed"]) == "did you mean 'max_epoch'?"
    assert did_you_mean("qqq", ["seed", "max_epoch"]) == "known: max_epoch, seed"
    assert did_you_mean("qqq", []) == "known: none"


def test_an_error_of_a_library_in_one_line() -> None:
    assert one_line(ValueError(" first\n\n  second ")) == "first second"
    assert one_line(KeyError()) == "KeyError"
    assert one_line(ValueError("x" * 400), longest=10) == "x" * 10 + "..."


@pytest.mark.parametrize(
    ("value", "expected"),
    [("é", '"é"'), ([1, None], "[1, null]"), ("x" * 100, '"' + "x" * 76 + "..."), ({1}, '"{1}"')],
)
def test_a_value_is_shown_by_its_first_characters(value: object, expected: str) -> None:
    assert shown(value) == expected


def test_a_value_of_any_depth_is_shown() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep) == "a list that is nested too deeply"
    while deep:  # one level at a time: freeing all at once would be as deep
        deep = deep.pop()  # type: ignore[assignment]

from __future__ import annotations

import pytest

from minigpt4.common.errors import did_you_mean, first_few, one_line


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


def test_a_hint_names_the_nearest_or_all() -> None:
    assert did_you_mean("max_epochs", ["max_epoch", "seed"]) == "did you mean 'max_epoch'?"
    assert did_you_mean("qqq", ["seed", "max_epoch"]) == "known: max_epoch, seed"
    assert did_you_mean("qqq", []) == "known: none"


def test_an_error_of_a_library_in_one_line() -> None:
    assert one_line(ValueError(" first\n\n  second ")) == "first second"
    assert one_line(KeyError()) == "KeyError"
    assert one_line(ValueError("x" * 400), longest=10) == "x" * 10 + "..."

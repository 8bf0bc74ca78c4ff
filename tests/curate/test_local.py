"""The refiner that compares descriptions."""

from __future__ import annotations

import pytest

from minigpt4.common.schema import RefineConfig
from minigpt4.curate.refiners import LocalRefiner
from minigpt4.curate.refiners.local import clean


def local(min_support: float = 0.5) -> LocalRefiner:
    return LocalRefiner(RefineConfig(min_support=min_support))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A red dog runs. A red dog runs. A blue car waits.", "A red dog runs. A blue car waits."),
        ("A red dog runs. a blue car", "A red dog runs."),
        ("A red dog. There is a blue car. Three things.", "A red dog. There is a blue car."),
        ("Two things: a red dog, a big red dog and a blue car.", "Two things: a red dog and a blue car."),
        ("Three things: a small red dog, a medium red dog and a large red dog.", "Three things: a small red dog."),
        ("There is a red dog with a red dog and a blue car.", "There is a red dog and a blue car."),
    ],
)
def test_repeats_and_fragments_are_removed(text: str, expected: str) -> None:
    assert local().refine("0", [text]).text == expected


def test_what_few_descriptions_name_is_removed() -> None:
    texts = ["There is a red dog, a green hat and a blue car.", "A red dog is near a blue car.", "One red dog."]
    correction = local().refine("0", texts)
    assert correction.text == "A red dog is near a blue car."  # right from the beginning
    assert correction.agreement == pytest.approx((1 + 2 / 3) / 2, abs=0.01)
    support = {frozenset({"red", "dog"}): 1.0, frozenset({"green", "hat"}): 0.2, frozenset({"blue", "car"}): 0.7}
    assert clean(texts[0], support, 0.5).text == "There is a red dog and a blue car."


def test_the_description_with_the_best_support_wins() -> None:
    texts = ["There is a green hat.", "There is a red dog.", "A red dog is there.", "There is a tall red dog."]
    assert local().refine("0", texts).text == "There is a red dog."


def test_a_text_of_fragments_alone_stays_for_the_rules() -> None:
    correction = local().refine("0", ["red. dog and"])
    assert (correction.text, correction.agreement) == ("red. dog and", 0.0)


def test_cleaning_twice_changes_nothing_more() -> None:
    once = local().refine("0", ["Three: a small red dog, a red dog and a blue car. a blue"]).text
    assert local().refine("0", [once]).text == once

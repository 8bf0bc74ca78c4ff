"""Measures of a text's form, each by cases counted by hand."""

from __future__ import annotations

import pytest

from minigpt4.evaluation.fluency import (
    COMMON_WORDS,
    common_word_ratio,
    fluency_scores,
    fragments,
    is_fragment,
    named_things,
    odd_character_ratio,
    repetition,
    sentences,
    words,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A Red dog.", ["a", "red", "dog"]),
        ("It's the dog’s well-known tail", ["it's", "the", "dog's", "well-known", "tail"]),
        ("'quoted' “curly” - dashed-", ["quoted", "curly", "dashed"]),
        ("snake_case 3 Übung", ["snake", "case", "3", "übung"]),
        ("", []),
        (" .,!? ", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One is red. Two is blue!  Is three?", ["One is red.", "Two is blue!", "Is three?"]),
        ("One is red. and then", ["One is red.", "and then"]),
        ("He said “It is red.” She left.", ["He said “It is red.”", "She left."]),
        ("Wait... what?! No.", ["Wait...", "what?!", "No."]),
        ("It is 1.5 m tall. So is 2.5", ["It is 1.5 m tall.", "So is 2.5"]),
        ("There are 3.The dog runs.", ["There are 3.", "The dog runs."]),
        ("Broken\nover\tlines.", ["Broken over lines."]),
        ("", []),
        (" \n ", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_repetition_is_a_share_of_trigrams() -> None:
    # "the red dog", "red dog the", "dog the red", and "the red dog" again: one in four.
    assert repetition("The red dog, the RED dog") == pytest.approx(1 / 4)
    # Of the four trigrams of one word six times over, all but the first occurred before.
    assert repetition("dog dog dog dog dog dog") == pytest.approx(3 / 4)
    assert repetition("it's the dog, it’s the dog") == pytest.approx(1 / 4)  # either apostrophe
    assert repetition("a red dog beside the blue car") == 0


@pytest.mark.parametrize("text", ["", "dog dog", "red dog"])
def test_text_shorter_than_a_trigram_repeats_nothing(text: str) -> None:
    assert repetition(text) == 0


@pytest.mark.parametrize(
    "sentence",
    [
        "The dog runs.",
        "The dog runs!",
        "Is it red?",
        "3 dogs are there.",
        "“The dog runs.”",
        "‘The dog runs.’",
        '"The dog runs."',
        "(The dog runs.)",
        "Élan is there.",
    ],
)
def test_a_complete_sentence_is_no_fragment(sentence: str) -> None:
    assert not is_fragment(sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "the dog runs.",  # no capital
        "“the dog runs.”",
        "The dog runs",  # no stop
        "The dog runs,",
        "“The dog runs”",
        "Dog runs.",  # two words
        "“.”",
        "",
    ],
)
def test_a_sentence_without_capital_stop_or_third_word_is_a_fragment(sentence: str) -> None:
    assert is_fragment(sentence)


def test_fragments_are_a_share_of_sentences() -> None:
    assert fragments("The dog runs. the car waits. The man stands. Over") == pytest.approx(2 / 4)
    assert fragments("The dog runs. The car waits.") == 0
    assert fragments("") == fragments("  ") == 1


def test_common_words_are_a_share_of_words() -> None:
    assert common_word_ratio("The dog is near a car") == pytest.approx(4 / 6)  # the, is, near, a
    assert common_word_ratio("Ein Hund steht hier") == 0
    assert common_word_ratio("THE AND") == 1
    assert common_word_ratio("") == common_word_ratio("...") == 0
    assert "the" in COMMON_WORDS and "dog" not in COMMON_WORDS


@pytest.mark.parametrize(
    ("text", "odd"),
    [
        ("It's “red” – 3 °C (50 %), $5 & well-known; ok?", 0),
        ("naïve café, 狗", 0),  # letters of any script; whether they are English is another measure
        ("a#b@c*d|", 4),
        ("under_score", 1),
        ("broken \ufffd", 1),
        ("wow!!!!!", 5),
        ("wow!!!!", 0),  # four are too few
        ("          ", 0),  # spaces do not count as a run
    ],
)
def test_odd_characters(text: str, odd: int) -> None:
    assert odd_character_ratio(text) == pytest.approx(odd / len(text))


def test_odd_characters_are_a_share_of_characters() -> None:
    assert odd_character_ratio("") == 0
    assert odd_character_ratio("#####") == 1  # odd and a run, counted twice, and still at most 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A large red circle above a blue star", [{"red", "circle"}, {"blue", "star"}]),
        ("The circle", []),  # one word is not enough
        ("A blue star and a blue star", [{"blue", "star"}, {"blue", "star"}]),
        ("Star blue", [{"blue", "star"}]),
        ("the dog dog", []),  # one word twice is one word
        ("Red dogs. Blue cars", [{"blue", "cars"}]),  # only a common word ends a run
        ("", []),
    ],
)
def test_named_things(text: str, expected: list[set[str]]) -> None:
    assert named_things(text) == [frozenset(thing) for thing in expected]


def test_scores_are_shares_of_answers() -> None:
    answers = [
        "There is a red dog. There is a red dog.",
        "There is a red dog with a blue car",
        "There is a red dog.",
        "",
    ]
    assert fluency_scores(answers) == {"repetition": 1 / 4, "fragments": 2 / 4}
    assert fluency_scores(iter(answers)) == fluency_scores(answers)
    assert fluency_scores([]) == {"repetition": 0, "fragments": 0}

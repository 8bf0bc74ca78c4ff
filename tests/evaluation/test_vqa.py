"""VQA's normalisation and accuracy on cases worked out by hand from the official rules."""

from __future__ import annotations

import pytest

from minigpt4.evaluation.vqa import exact_match, is_yes_or_no, normalise_answer, says_yes, soft_accuracy


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("A Dog", "dog"),
        ("the man and an apple", "man and apple"),
        ("Two", "2"),
        ("none", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("dont know", "don't know"),
        ("It'dve been", "it'd've been"),
        ("itd've", "it'd've"),
        ("somebody'd", "somebodyd"),  # the official table's own
        ("shes", "shes"),  # not in the official table
        ("red.", "red"),
        ("3.5", "3.5"),  # a full stop in front of a digit stays
        ("no. 5", "no 5"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("on-the-left", "on left"),
        ("1,000", "1000"),
        ("1,000 t-shirts", "1000 tshirts"),  # a number with a comma glues everything
        ("red, blue", "red blue"),
        ("red,blue", "red blue"),
        ("5:30 o'clock", "5:30 o'clock"),  # colons and apostrophes stay
        ("oclock", "o'clock"),
        ("  yes\n", "yes"),
        ("what?!", "what"),
        ("the", ""),
    ],
)
def test_answers_are_normalised_as_officially(text: str, normal: str) -> None:
    assert normalise_answer(text) == normal


CONTRACTED = """
aint arent cant couldve couldnt couldn'tve couldnt've didnt doesnt dont hadnt hadnt've hadn'tve hasnt havent hed hed've
he'dve hes howd howll hows isnt itd itd've it'dve itll maam mightnt mightnt've mightn'tve mightve mustnt mustve neednt
notve oclock oughtnt ow's'at 'ows'at 'ow'sat shant shed've she'dve shouldve shouldnt shouldnt've shouldn'tve
somebodyd've somebody'dve somebodyll somebodys someoned someoned've someone'dve someonell someones somethingd
somethingd've something'dve somethingll thats thered thered've there'dve therere theres theyd theyd've they'dve theyll
theyre theyve twas wasnt wed've we'dve weve werent whatll whatre whats whatve whens whered wheres whereve whod whod've
who'dve wholl whos whove whyll whyre whys wont wouldve wouldnt wouldnt've wouldn'tve yall yall'll y'allll yall'd've
y'alld've y'all'dve youd youd've you'dve youll youre youve
"""
"""The entries of the official table that lack an apostrophe."""


def test_every_contraction_of_the_official_table_gets_its_apostrophe() -> None:
    for word in CONTRACTED.split():
        normal = normalise_answer(word)
        assert normal.count("'") == word.count("'") + 1 and normal.replace("'", "") == word.replace("'", "")
        assert normalise_answer(normal) == normal
    for word in ("id've", "ive", "im", "lets", "well", "were", "ill", "its", "hell", "shell"):  # other words, too
        assert normalise_answer(word) == word


def test_every_mark_digit_and_article() -> None:
    for mark in ';/[]"{}()=+\\_-><@`,?!':
        assert normalise_answer(f"red{mark}blue") == "red blue" == normalise_answer(f"red {mark} blue")
        assert normalise_answer(f"red{mark} blue{mark}pink") == "red bluepink"
    for mark in ":'&%$#*~|^":
        assert normalise_answer(f"red{mark}blue") == f"red{mark}blue"
    numbers = "zero one two three four five six seven eight nine ten"
    assert normalise_answer(numbers) == " ".join(map(str, range(11))) and normalise_answer("None") == "0"
    assert normalise_answer("The a AN thee") == "thee"


def test_soft_accuracy_leaves_each_person_out() -> None:
    def of(matching: int) -> float:
        return soft_accuracy("Red.", ["red"] * matching + ["blue"] * (10 - matching))

    # One of ten: nine times 1/3, and 0 where the one who said it is left out.
    assert [of(count) for count in (0, 1, 2, 3, 4, 10)] == pytest.approx([0, 0.3, 0.6, 0.9, 1, 1])


def test_few_answers_cannot_agree_and_count_alone() -> None:
    assert soft_accuracy("the red", ["red"]) == soft_accuracy("red", ["blue", "red"]) == 1
    assert soft_accuracy("green", ["blue", "red"]) == 0
    assert soft_accuracy("red", ["red", "red", "blue"]) == pytest.approx((2 * 1 / 3 + 2 / 3) / 3)


def test_exact_match_ignores_case_and_the_last_full_stop_only() -> None:
    assert exact_match(" Left  side.", ["left side"]) == 1
    assert exact_match("the left side", ["left side"]) == 0
    assert exact_match("2", ["two"]) == 0


@pytest.mark.parametrize(
    ("answer", "yes", "readable"),
    [
        ("Yes", True, True),
        ("no", False, True),
        ("No, there is not.", False, True),
        ("There is not a dog. Yes.", False, True),
        ("Yes. There is no cat.", True, True),  # the first sentence counts
        ("a dog", True, False),  # as POPE counts it
        ("a knot", True, False),
        ("", True, False),
    ],
)
def test_yes_or_no(answer: str, yes: bool, readable: bool) -> None:
    assert (says_yes(answer), is_yes_or_no(answer)) == (yes, readable)

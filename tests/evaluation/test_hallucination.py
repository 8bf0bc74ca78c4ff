"""Mentions of objects, CHAIR and POPE's questions, on cases counted by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from minigpt4.common.errors import DataError
from minigpt4.evaluation.hallucination import POPE_KINDS, chair, pope_questions, read_vocabulary

COCO = ("dog", "hot dog", "couch", "person", "train", "teddy bear", "bear", "knife", "bus", "orange")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("A dog on a sofa.", ["dog", "couch"]),
        ("Two dogs eat hot dogs.", ["dog", "hot dog"]),  # the longest phrase counts
        ("A teddy bear, not a bear", ["teddy bear", "bear"]),
        ("a train station", []),
        ("People with knives on buses, the man's dog", ["person", "knife", "bus", "person", "dog"]),
        ("an oranges-and-dogs sign", ["orange", "dog"]),
        ("a cat", []),  # not one of the objects
        ("", []),
    ],
)
def test_mentions(text: str, named: list[str]) -> None:
    assert read_vocabulary(COCO).mentions(text) == named


def test_own_words(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("# birds\nwren: jenny\n- wren house\n")
    words = read_vocabulary(["wren", "Barn owl"], path)
    assert words.mentions("A jenny, a wren house and barn owls") == ["wren", "Barn owl"]
    path.write_text("wren, jenny\n")
    with pytest.raises(DataError, match=r"words.txt, line 1: 'name: further words"):
        read_vocabulary(["wren"], path)


def test_the_shipped_words_name_all_of_cocos_objects_once() -> None:
    from minigpt4.common.files import asset

    lines = [line for line in Path(asset("object_words.txt")).read_text().splitlines() if line[0] not in "#-"]
    names = [line.split(":")[0] for line in lines]
    assert len(set(names)) == len(names) == 80
    words = [word.strip() for line in lines for word in line.replace(":", ",").split(",") if word.strip()]
    assert [word for word, count in Counter(words).items() if count > 1] == []


def test_chair() -> None:
    captions = [
        (["dog", "cat", "cat"], {"dog"}),  # two wrong mentions
        (["dog"], {"dog", "car"}),
        ([], {"car"}),
    ]
    assert chair(captions) == {"CHAIR_i": 2 / 4, "CHAIR_s": 1 / 3, "object_recall": 2 / 4}
    assert chair([([], ())]) == {"CHAIR_i": 0, "CHAIR_s": 0, "object_recall": 0}


IMAGES = {
    "1.png": ["cat", "dog", "cat"],
    "2.png": ["cat", "dog"],
    "3.png": ["apple", "bird"],
    "4.png": ["bird"],
    "5.png": ["bird"],
    "6.png": ["cat", "apple"],
    "none.png": [],
}


def test_pope_asks_as_often_about_what_is_there_as_about_what_is_not() -> None:
    rows = pope_questions(IMAGES, each=1)
    assert len({row["id"] for row in rows}) == len(rows) == 6 * 3 * 2
    for row in rows:
        name = row["question"].removeprefix("Is there an ").removeprefix("Is there a ").removesuffix(" in the image?")
        assert (row["answer"] == "yes") == (name in IMAGES[row["image"]])
    assert Counter((row["kind"], row["answer"]) for row in rows) == dict.fromkeys(
        ((kind, answer) for kind in POPE_KINDS for answer in ("yes", "no")), 6
    )
    (popular,) = [row for row in rows if row["image"] == "1.png" and row["kind"] == "popular" and row["answer"] == "no"]
    assert popular["question"] == "Is there a bird in the image?"  # in three images
    (beside,) = [
        row for row in rows if row["image"] == "1.png" and row["kind"] == "adversarial" and row["answer"] == "no"
    ]
    assert beside["question"] == "Is there an apple in the image?"  # the only other object beside a cat
    some = pope_questions(IMAGES, each=1, images=2)
    assert len(some) == 2 * 6 and all(row in rows for row in some)
    assert rows == pope_questions(IMAGES, each=1) != pope_questions(IMAGES, each=1, seed=1)


def test_an_object_counts_once_for_each_image() -> None:
    rows = pope_questions({"a": ["hen"], "b": ["cat"] * 3, "c": ["dog"], "d": ["dog"]}, each=2)
    popular = [row for row in rows if row["kind"] == "popular"]
    assert [row["question"].split()[3] for row in popular if row["image"] == "a"] == ["hen", "dog"]
    assert [row["answer"] for row in popular if row["image"] == "b"] == ["yes", "no"]


def test_pope_asks_no_more_than_there_is() -> None:
    rows = [row for row in pope_questions(IMAGES, each=5) if row["image"] == "1.png" and row["kind"] == "random"]
    assert Counter(row["answer"] for row in rows) == {"yes": 2, "no": 2}
    assert pope_questions({"a": ["cat"], "b": ["cat"]}) == []

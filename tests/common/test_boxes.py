"""Boxes in texts."""

from __future__ import annotations

import pytest

from minigpt4.common.boxes import AnswerText, Box, annotated_boxes, find_boxes, misspelt, with_task
from minigpt4.common.errors import DataError


def test_a_box_is_written_in_hundredths_and_read_again() -> None:
    box = Box(0.12, 0.3, 0.449, 1.2)
    assert box.text == "{<12><30><45><100>}"
    assert find_boxes(f"there: {box.text}.") == [Box(0.12, 0.3, 0.45, 1.0)]
    assert find_boxes(Box(-0.1, 0, 1, 1).text) == [Box(0, 0, 1, 1)]


@pytest.mark.parametrize("box", [Box(0.301, 0.3, 0.302, 0.304), Box(0.999, 1, 1, 1), Box(0, 0, 0.001, 0.001)])
def test_a_small_box_can_be_read_again(box: Box) -> None:
    (again,) = find_boxes(box.text)
    assert again.right - again.left == pytest.approx(0.01) and again.bottom - again.top == pytest.approx(0.01)
    assert all(abs(a - b) <= 0.0101 for a, b in zip(again.sides, box.sides, strict=True))


def test_labels_belong_to_the_boxes_behind_them() -> None:
    text = "<p>a dog</p> {<1><2><3><4>}<delim>{<5><6><7><8>} near {<9><10><11><12>} <p>a cat</p> sits {<1><2><30><40>}"
    assert [box.label for box in find_boxes(text)] == ["a dog", "a dog", "", ""]
    assert [round(100 * box.left) for box in find_boxes(text)] == [1, 5, 9, 1]


def test_spaces_inside_a_box() -> None:
    assert find_boxes("{ <1> <2>\n<3> <4> }") == [Box(0.01, 0.02, 0.03, 0.04)]


@pytest.mark.parametrize(
    "text",
    ["", "{<1><2><3>}", "{<1><2><3><4>", "{<1><2><3><101>}", "{<1><2><1><4>}", "{<5><2><3><4>}", "{1,2,3,4}",
     "{<-1><2><3><4>}", "{<1.5><2><3><4>}", "{<1><2><3><4000>}"],
)  # fmt: skip
def test_what_is_no_box_of_the_image(text: str) -> None:
    assert find_boxes(text) == []


@pytest.mark.parametrize(
    "box",
    ["{<1><2><3>}", "{<1><2><3><101>}", "{<5><2><3><4>}", "{<1><9><3><4>}", "{<-1><2><3><4>}", "{<1.5><2><3><4>}",
     "{<1><2><3><4000>}", "{<nan><2><3><4>}", "{<120><300><400><500>}", "{<0.1><0.2><0.3><0.4>}", "{<1><2><3><4><5>}"],
)  # fmt: skip
def test_an_annotation_with_what_is_nearly_a_box_is_refused(box: str) -> None:
    with pytest.raises(DataError, match=r"the box \{<.*\} should be \{<left><top><right><bottom>\} in hundredths"):
        annotated_boxes(f"<p>a dog</p> {{<1><2><3><4>}}<delim>{box}.")


def test_other_braces_of_an_annotation_are_text() -> None:
    text = "set = {<int>}; {<b>} {} {1, 2} <p>it</p> { <1> <2> <3> <4> } {<5><6><5><8>}"
    assert annotated_boxes(text) == [Box(0.01, 0.02, 0.03, 0.04, "it")]


def test_an_answer_is_text_that_knows_its_boxes() -> None:
    answer = AnswerText("<p>it</p>{<0><0><50><100>}")
    assert answer == "<p>it</p>{<0><0><50><100>}" and isinstance(answer, str)
    assert answer.boxes == [Box(0, 0, 0.5, 1, "it")]
    assert AnswerText("none").boxes == []


def test_a_task_stands_in_front() -> None:
    assert (with_task("what?", "vqa"), with_task("what?", None)) == ("[vqa] what?", "what?")
    assert (with_task("[vqa] what?", "vqa"), with_task("[1] what?", "vqa")) == ("[vqa] what?", "[vqa] [1] what?")
    with pytest.raises(DataError, match=r"begins with \[refer\], but the task is vqa"):
        with_task(" [refer] it", "vqa")


def test_a_misspelt_task_or_box() -> None:
    assert misspelt("[refre] it") == "[refre] is no task; did you mean 'refer'?"
    assert misspelt(" [VQA] what?") == "[VQA] is no task; did you mean 'vqa'?"
    assert [misspelt(text) for text in ("[vqa] what?", "what?", "[ocr] read it", "[]", "[a b] x")] == [""] * 5
    assert misspelt("[identify] {<1><2><300><4>}").startswith("the box {<1><2><300><4>} should be")

"""Boxes in texts."""

from __future__ import annotations

import pytest

from minigpt4.common.boxes import AnswerText, Box, find_boxes, with_task


def test_a_box_is_written_in_hundredths_and_read_again() -> None:
    box = Box(0.12, 0.3, 0.449, 1.2)
    assert box.text == "{<12><30><45><100>}"
    assert find_boxes(f"there: {box.text}.") == [Box(0.12, 0.3, 0.45, 1.0)]
    assert find_boxes(Box(-0.1, 0, 1, 1).text) == [Box(0, 0, 1, 1)]


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


def test_an_answer_is_text_that_knows_its_boxes() -> None:
    answer = AnswerText("<p>it</p>{<0><0><50><100>}")
    assert answer == "<p>it</p>{<0><0><50><100>}" and isinstance(answer, str)
    assert answer.boxes == [Box(0, 0, 0.5, 1, "it")]
    assert AnswerText("none").boxes == []


def test_a_task_stands_in_front() -> None:
    assert (with_task("what?", "vqa"), with_task("what?", None)) == ("[vqa] what?", "what?")

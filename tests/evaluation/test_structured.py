"""Boxes and triples parsed from answers, and their scores, on cases counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minigpt4.common.boxes import iou
from minigpt4.common.errors import MetricError
from minigpt4.evaluation.structured import (
    box_scores,
    main,
    matched_boxes,
    parse_boxes,
    parse_triples,
    triple_scores,
)

DOG = ("dog1", (0.1, 0.2, 0.5, 0.9))
DOG_TEXT = '"dog1": [0.100, 0.200, 0.500, 0.900]'


@pytest.mark.parametrize(
    ("text", "items", "wrong", "failed"),
    [
        ("{" + DOG_TEXT + "}", [DOG], 0, False),
        ("Here it is: {" + DOG_TEXT + "} and that is all.", [DOG], 0, False),
        ("{" + DOG_TEXT + ', "cat1": [0.1, 0.2', [DOG], 0, False),  # cut off
        ("{" + DOG_TEXT + ', "cat1": [0.1, 0.2, 0.3]}', [DOG], 1, False),
        ("{" + DOG_TEXT + ', "cat1": [0.1, 0.2, 30, 40]}', [DOG], 1, False),  # pixels
        ("{" + DOG_TEXT + ', "cat1": [0.6, 0.2, 0.3, 0.4]}', [DOG], 1, False),  # corners swapped
        ("{" + DOG_TEXT + ', "cat1": [a, b, c, d], "x": [nan, 0, 1, 1]}', [DOG], 2, False),
        ("{}", [], 0, False),
        ("{ }", [], 0, False),
        ("There is a dog.", [], 0, True),
        ("", [], 0, True),
        ('{"dog1": [1, 2, 3]}', [], 1, True),
        (r'{"\u00e9t\u00e91": [0, 0, 1, 1]}', [("été1", (0, 0, 1, 1))], 0, False),
    ],
)
def test_boxes_are_parsed_tolerantly(text: str, items: list[object], wrong: int, failed: bool) -> None:
    parsed = parse_boxes(text)
    assert (list(parsed.items), parsed.wrong, parsed.failed) == (items, wrong, failed)


@pytest.mark.parametrize(
    ("text", "items", "wrong", "failed"),
    [
        ('[["Ann", "age", "31"]]', [("Ann", "age", "31")], 0, False),
        ('The table: [["Ann", "age", "31"], ["Bob", "a', [("Ann", "age", "31")], 0, False),
        (r'[["A, \"B\"", "x [m]", "é"]]', [('A, "B"', "x [m]", "é")], 0, False),
        ('[["Ann", "age"], ["Bob", "age", "7"]]', [("Bob", "age", "7")], 1, False),
        ("[]", [], 0, False),
        ("[[]]", [], 0, False),
        ("Ann is 31.", [], 0, True),
    ],
)
def test_triples_are_parsed_tolerantly(text: str, items: list[object], wrong: int, failed: bool) -> None:
    parsed = parse_triples(text)
    assert (list(parsed.items), parsed.wrong, parsed.failed) == (items, wrong, failed)


def test_iou() -> None:
    assert iou((0, 0, 0.5, 0.5), (0, 0, 0.5, 0.5)) == 1
    assert iou((0, 0, 0.4, 0.4), (0.2, 0, 0.6, 0.4)) == pytest.approx(1 / 3)
    assert iou((0, 0, 0.4, 0.4), (0.5, 0.5, 0.6, 0.6)) == 0
    assert iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0


def test_boxes_of_one_name_are_paired_whatever_their_numbers() -> None:
    left, right = (0.0, 0.0, 0.4, 0.4), (0.6, 0.6, 1.0, 1.0)
    assert matched_boxes([("dog1", right), ("Dog2", left)], [("dog1", left), ("dog2", right)]) == [1, 1]
    assert matched_boxes([("cat1", left)], [("dog1", left)]) == []
    assert matched_boxes([("dog1", left), ("dog2", left)], [("dog1", left)]) == [1]  # a box counts once
    assert matched_boxes([("dog1", (0.3, 0.0, 0.7, 0.4))], [("dog1", left)]) == []  # an IoU of 1/7


def test_box_scores() -> None:
    half = '{"dog1": [0.000, 0.000, 0.500, 0.500]}'
    answers = [
        (half, half),  # right
        ('{"dog1": [0, 0, 0.5, 0.4], "cat1": [2, 2, 2, 2]}', half),  # IoU 0.8, and an invalid entry
        ("no idea", half),
        ("{}", "{}"),
    ]
    scores = box_scores(answers)
    assert (scores["precision"], scores["recall"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert scores["f1"] == pytest.approx(2 / 3) and scores["mean_iou"] == pytest.approx(0.9)
    assert (scores["answers"], scores["wrong_entries"], scores["unreadable_answers"]) == (4, 1, 1)


def test_triple_scores() -> None:
    reference = '[["Ann", "age", "31"], ["Bob", "age", "7"]]'
    scores = triple_scores([('[["ann ", "Age", "31"], ["Bob", "age", "8"], ["Bob", "age", "9"]]', reference)])
    assert (scores["precision"], scores["recall"]) == (pytest.approx(1 / 3), 0.5)
    assert scores["f1"] == pytest.approx(0.4)
    twice = triple_scores([('[["Bob", "age", "7"], ["Bob", "age", "7"]]', '[["Bob", "age", "7"]]')])
    assert twice["precision"] == 0.5  # a repetition is not right again


def test_nothing_to_find_and_nothing_predicted_is_right() -> None:
    assert box_scores([("{}", "{}")])["f1"] == 1
    assert box_scores([("{}", '{"dog1": [0, 0, 1, 1]}')])["f1"] == 0
    assert box_scores([('{"dog1": [0, 0, 1, 1]}', "{}")])["f1"] == 0


def test_an_invalid_reference_is_an_error() -> None:
    with pytest.raises(MetricError, match="reference 1 cannot be read: 'A dog'"):
        box_scores([("{}", "A dog")])
    with pytest.raises(MetricError, match="no answers"):
        triple_scores([])


def test_the_command_scores_a_predictions_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"image_id": "1", "caption": "{" + DOG_TEXT + "}", "references": ["{" + DOG_TEXT + "}"]}]
    (tmp_path / "p.json").write_text(json.dumps({"protocol": {}, "predictions": rows}))
    main(["boxes", "--preds", str(tmp_path / "p.json"), "--out", str(tmp_path / "s.json")])
    assert "f1 1" in capsys.readouterr().out
    assert json.loads((tmp_path / "s.json").read_text())["mean_iou"] == pytest.approx(1)
    for out, message in (("p.json", "holds something else"), ("s.json/t.json", "cannot be written")):
        with pytest.raises(SystemExit):
            main(["boxes", "--preds", str(tmp_path / "p.json"), "--out", str(tmp_path / out)])
        assert message in capsys.readouterr().err
    rows[0]["references"] = []
    (tmp_path / "p.json").write_text(json.dumps({"protocol": {}, "predictions": rows}))
    with pytest.raises(SystemExit):
        main(["boxes", "--preds", str(tmp_path / "p.json")])
    assert "image 1 has 0 references; 1 is expected" in capsys.readouterr().err

"""Scorers of questions, on cases worked out by hand, and average precision beside COCOeval itself."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from minigpt4.common.boxes import Box, iou
from minigpt4.common.errors import MetricError
from minigpt4.evaluation.detection import average_precision
from minigpt4.evaluation.predictions import Prediction, save_predictions
from minigpt4.evaluation.questions import box_text, fitting_scorer, main, score_answers, score_by_kind


def answer(key: int, text: str, *references: str, **extra: Any) -> Prediction:
    return Prediction(str(key), text, "a.png", references, extra)


def test_accuracy_by_kind_and_with_shuffled_images() -> None:
    people = ["red"] * 8 + ["pink"] * 2
    items = [
        answer(1, "red", *people, kind="colour", shuffled="blue"),
        answer(2, "Pink.", *people, kind="colour", shuffled="red"),
        answer(3, "2", *["two"] * 10, kind="number", shuffled="2"),
        answer(4, "x", *["y"] * 10),  # of no kind, and without another image
    ]
    scores = score_answers("soft", items)
    assert scores.corpus == pytest.approx({"accuracy": (1 + 0.6 + 1 + 0) / 4})
    assert scores.controls == pytest.approx({"accuracy_shuffled": (0 + 1 + 1) / 3})
    assert scores.per_image["2"] == pytest.approx({"accuracy": 0.6})
    kinds = score_by_kind("soft", items)
    assert list(kinds) == ["colour", "number"]
    assert kinds["colour"] == pytest.approx({"questions": 2, "accuracy": 0.8, "accuracy_shuffled": 0.5})


def test_yes_and_no() -> None:
    said = ["yes", "Yes, there is.", "no", "No.", "maybe"]
    true = ["yes", "no", "yes", "no", "no"]
    items = [answer(key, text, truth) for key, (text, truth) in enumerate(zip(said, true, strict=True))]
    scores = score_answers("yes_no", items)
    # Yes is said three times (an unreadable answer counts as yes), and right once of two.
    assert scores.corpus == pytest.approx(
        {"accuracy": 2 / 5, "precision": 1 / 3, "recall": 1 / 2, "F1": 0.4, "yes": 3 / 5, "unreadable": 1 / 5}
    )
    assert scores.controls == {}


def chosen(key: int, text: str, truth: str, *losses: Any, choices: tuple[str, ...] = ("no", "yes")) -> Prediction:
    return answer(key, text, truth, choices=list(choices), losses=list(losses))


def test_auroc_of_two_choices() -> None:
    items = [
        chosen(1, "yes", "yes", 3.0, 1.0),  # 2 more likely
        chosen(2, "no", "yes", 1.0, 2.0),  # 1 less likely, although it is right
        chosen(3, "no", "no", 0.5, 4.0),  # 3.5 less likely
        chosen(4, "no", "no", 2.0, 3.0),  # 1 less likely, as in the second
        chosen(5, "yes", "no", 5.0, 4.5),  # 0.5 more likely
    ]
    # Of 2 x 3 pairs the first question wins three, the second one and, by half, the tie.
    assert score_answers("choice", items).corpus == pytest.approx({"accuracy": 3 / 5, "AUROC": 4.5 / 6})
    assert score_answers("choice", items[2:]).corpus == pytest.approx({"accuracy": 2 / 3})  # of one kind only
    for other in (chosen(6, "a", "a", 1, 2, choices=("a", "b")), chosen(6, "a", "a", 1, 2, 3, choices=("a", "b", "c"))):
        assert "AUROC" not in score_answers("choice", [*items, other]).corpus
    for other in (answer(6, "no", "no", choices=["no", "yes"]), chosen(6, "no", "maybe", 1, 2)):
        assert "AUROC" not in score_answers("choice", [*items, other]).corpus
    for losses in ([1.0], [1.0, None], [1.0, float("nan")]):
        with pytest.raises(MetricError, match="question 6: 'losses' should be two numbers"):
            score_answers("choice", [*items, chosen(6, "no", "no", *losses)])


TRUE = Box(0.2, 0.2, 0.6, 0.6, "dog")


@pytest.mark.parametrize(
    ("scorer", "metric", "text", "other", "reference"),
    [
        ("soft", "accuracy", "red", "blue", "red"),
        ("choice", "accuracy", "red", "blue", "red"),
        ("yes_no", "accuracy", "yes", "no", "yes"),
        ("yes_no", "F1", "yes", "no", "yes"),
        ("refer", "IoU_50", "{<20><20><60><60>}", "{<0><0><9><9>}", box_text(TRUE)),
        ("detection", "AP50", "<p>dog</p> {<20><20><60><60>}", "<p>dog</p> {<0><0><9><9>}", box_text(TRUE)),
    ],
)
def test_every_scorer_has_a_control(scorer: str, metric: str, text: str, other: str, reference: str) -> None:
    items = [answer(key, text, reference, kind="a", shuffled=other) for key in range(2)]
    scores = score_answers(scorer, items)
    assert (scores.corpus[metric], scores.controls[f"{metric}_shuffled"]) == (pytest.approx(1), 0)
    kinds = score_by_kind(scorer, items)["a"]
    assert (kinds[metric], kinds[f"{metric}_shuffled"]) == (pytest.approx(1), 0)


@pytest.mark.parametrize(
    ("text", "overlap"),
    [
        ("{<20><20><60><60>}", 1),
        ("<p>dog</p> {<20><20><60><40>}", 0.5),
        ("{<20><20><60><39>}", 0.475),
        ("{<60><20><90><60>}", 0),  # they touch
        ("{<0><0><100><100>}", 0.16),
        ("{<20><20><60><60>} or {<0><0><1><1>}", 1),  # the first counts
        ("{<60><60><20><20>}", None),  # corners swapped
        ("{<20><20><20><60>}", None),  # without an area
        ("{<20><20><60><101>}", None),  # outside the image
        ("{<20><20><60>}", None),
        ("in the middle", None),
        ("", None),
    ],
)
def test_referring(text: str, overlap: float | None) -> None:
    scores = score_answers("refer", [answer(1, text, box_text(TRUE))])
    assert scores.corpus == pytest.approx(
        {"IoU_50": float((overlap or 0) >= 0.5), "mean_IoU": overlap or 0, "unreadable": float(overlap is None)}
    )


def test_half_is_enough_whatever_the_arithmetic_says() -> None:
    true, found = Box(0.1, 0.35, 0.6, 0.75, "dog"), Box(0.05, 0.25, 0.45, 0.8, "dog")
    assert 0.4999 < iou(found.sides, true.sides) < 0.5  # 1,400 of 2,800 hundredths
    assert score_answers("refer", [answer(1, found.text, box_text(true))]).corpus["IoU_50"] == 1
    scores = score_answers("detection", [answer(1, f"<p>dog</p> {found.text}", box_text(true))]).corpus
    assert scores["AP50"] == pytest.approx(1) and scores["box_F1"] == 1 and scores["AP"] < 0.2
    # One hundredth less is not.
    less = Box(0.04, 0.25, 0.45, 0.8, "dog")
    assert score_answers("refer", [answer(1, less.text, box_text(true))]).corpus["IoU_50"] == 0


def test_true_boxes_are_kept_unrounded() -> None:
    true = Box(0.123456789, 0.2, 0.6, 2 / 3, 'a "dog"')
    scores = score_answers("refer", [answer(1, true.text, box_text(true))])
    assert 0.95 < scores.corpus["mean_IoU"] < 1
    for wrong in (
        "{<1><2><3><4>}",
        "[]",
        '{"box": [1, 2, 3], "label": ""}',
        '{"box": [1, 2]}',
        '{"box": 3, "label": ""}',
        '{"box": [0.1, 0.2, NaN, 0.4], "label": ""}',
        '{"box": [0.1, 0.4, 0.3, 0.2], "label": ""}',
    ):
        with pytest.raises(MetricError, match="question 7: a reference is no box"):
            score_answers("refer", [answer(7, "", wrong)])
    with pytest.raises(MetricError, match="question 7: 2 true boxes, where 1 is expected"):
        score_answers("refer", [answer(7, "", box_text(true), box_text(true))])


IMAGES = [
    {"id": 3, "width": 640, "height": 480},
    {"id": 8, "width": 500, "height": 375},
    {"id": 9, "width": 9, "height": 9},
]
NAMES = {1: "person", 18: "dog", 44: "bottle"}
ANNOTATIONS = [
    (3, 18, [100, 100, 200, 150]),
    (3, 18, [400, 50, 100, 100]),
    (3, 1, [10, 20, 80, 300]),
    (8, 1, [50, 50, 100, 200]),
    (8, 44, [300, 200, 40, 90]),
]
FOUND = [
    (3, 18, [110, 105, 195, 150]),
    (3, 18, [385, 55, 100, 110]),  # IoU 0.62
    (3, 44, [0, 0, 50, 50]),
    (3, 1, [12, 25, 80, 280]),
    (8, 1, [200, 100, 60, 60]),
    (8, 1, [52, 55, 99, 190]),
    (9, 1, [1, 1, 3, 3]),
]


def test_average_precision_is_that_of_cocoeval_on_its_own_layout() -> None:
    def entries(rows: list[Any]) -> list[dict[str, Any]]:
        return [
            {"id": n, "image_id": i, "category_id": c, "bbox": b, "area": b[2] * b[3], "iscrowd": 0}
            for n, (i, c, b) in enumerate(rows, 1)
        ]

    with redirect_stdout(io.StringIO()):
        truth = COCO()
        categories = [{"id": number, "name": name} for number, name in NAMES.items()]
        truth.dataset = {"info": {}, "images": IMAGES, "annotations": entries(ANNOTATIONS), "categories": categories}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes([entry | {"score": 0.5} for entry in entries(FOUND)]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()

    def boxes(rows: list[Any], image: dict[str, int]) -> list[Box]:
        w, h = image["width"], image["height"]
        return [
            Box(x / w, y / h, (x + a) / w, (y + b) / h, NAMES[c].upper())
            for i, c, (x, y, a, b) in rows
            if i == image["id"]
        ]

    scores = average_precision((boxes(FOUND, image), boxes(ANNOTATIONS, image)) for image in IMAGES)
    assert scores == pytest.approx({"AP": evaluation.stats[0], "AP50": evaluation.stats[1]})
    assert 0.1 < scores["AP"] < scores["AP50"] < 0.9 and evaluation.stats[2] < scores["AP50"]


def test_detection() -> None:
    dog, cat = Box(0, 0, 0.5, 0.5, "dog"), Box(0.5, 0.5, 1, 1, "cat")
    both, one = (box_text(dog), box_text(cat)), (box_text(dog),)
    items = [
        answer(1, f"<p>Dog</p> {dog.text} <p>cat</p> {cat.text}", *both),
        answer(2, f"<p>cat</p> {dog.text}", *one),  # another label
        answer(3, "nothing"),
        answer(4, f"<p>unicorn</p> {dog.text}"),
    ]
    scores = score_answers("detection", items)
    assert [scores.per_image[str(key)]["box_F1"] for key in range(1, 5)] == [1, 0, 1, 0]
    assert scores.corpus["box_F1"] == 0.5 and scores.corpus["unreadable"] == 0
    assert score_answers("detection", items[:1]).corpus == pytest.approx(
        {"AP": 1, "AP50": 1, "box_F1": 1, "unreadable": 0}
    )
    assert score_answers("detection", [answer(1, "?", *one)]).corpus == {
        "AP": 0,
        "AP50": 0,
        "box_F1": 0,
        "unreadable": 1,
    }
    assert set(score_answers("detection", items[2:3]).corpus) == {"box_F1", "unreadable"}  # no truth, no precision


def test_detection_of_boxes_as_json() -> None:
    """The text that the reader coco_boxes makes of COCO's annotations."""
    dog, cat = Box(0, 0, 0.5, 0.5, "dog"), Box(0.5, 0.5, 1, 1, "cat")
    true = [box_text(dog), box_text(dog), box_text(cat)]
    text = '{"cat1": [0.500, 0.500, 1.000, 1.000], "dog1": [0, 0, 0.5, 0.5], "dog2": [0, 0, 0, 0.5]}'
    scores = score_answers("detection", [answer(1, text, *true)])
    # One of two dogs is found, so precision is 1 up to a recall of a half: 51 of COCO's 101 points.
    expected = (1 + 51 / 101) / 2
    assert scores.corpus == pytest.approx({"AP": expected, "AP50": expected, "box_F1": 0.8, "unreadable": 0})


def test_predictions_that_were_edited() -> None:
    for scorer in ("soft", "exact", "choice", "yes_no"):
        with pytest.raises(MetricError, match="question 7 has no answer in 'references'"):
            score_answers(scorer, [answer(7, "yes")])
    with pytest.raises(MetricError, match="question 7: its answer is neither yes nor no: 'red'"):
        score_answers("yes_no", [answer(7, "yes", "red")])
    with pytest.raises(MetricError, match="question 7: 'shuffled' should be an answer, found 3"):
        score_answers("soft", [answer(7, "yes", "yes", shuffled=3)])


@pytest.mark.parametrize("metrics", [None, [], "soft", 5, [{}], {"soft": 1}, ["soft", "exact"], ["softt"]])
def test_a_file_that_does_not_say_how_to_score_it(
    metrics: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_predictions(tmp_path / "a.json", [answer(1, "red", "red")], {"metrics": metrics})
    with pytest.raises(SystemExit):
        main(["--preds", str(path)])
    assert "a.json does not say how to score it; name one of soft, exact" in capsys.readouterr().err
    main(["--preds", str(path), "--scorer", "exact"])
    assert "100.0 %" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("truth", "scorer"),
    [
        ([(["red"] * 10, False), (["2"] * 10, False)], "soft"),
        ([(["red"], False), (["no"], False)], "exact"),
        ([(["yes"], False), (["No."], False)], "yes_no"),
        ([(["red"], True), (["2"], True)], "choice"),
        ([(["red"] * 10, True), (["red"] * 10, False)], "soft"),
        ([(["yes"] * 10, False)], "soft"),
    ],
)
def test_the_scorer_follows_from_the_answers(truth: list[tuple[list[str], bool]], scorer: str) -> None:
    assert fitting_scorer(truth) == scorer

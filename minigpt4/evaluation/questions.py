"""Scores of answers to questions: which scorer fits, each question's score, accuracy by kind, and shuffled images.

Everything is scored from `Prediction`s alone, as a predictions file holds them.
"""

from __future__ import annotations

import argparse
import json
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from minigpt4.common.boxes import Box, find_boxes, iou
from minigpt4.common.cli import exit_on_error
from minigpt4.common.errors import MetricError, shown
from minigpt4.common.files import write_json, writing
from minigpt4.evaluation.detection import average_precision
from minigpt4.evaluation.predictions import PREFIX, Prediction, load_predictions
from minigpt4.evaluation.scores_file import check_replaceable
from minigpt4.evaluation.statistics import Scores, bootstrap_intervals, intervals_note
from minigpt4.evaluation.structured import MIN_IOU, detected_boxes, matched_boxes
from minigpt4.evaluation.table import HEADLINES, ScoreTable, is_number, kind_table
from minigpt4.evaluation.vqa import AGREEING, exact_match, is_yes_or_no, says_yes, soft_accuracy

SHUFFLED = "shuffled"
"""Entry of a prediction with the answer to the same question about another image."""
Scored = tuple[dict[str, float], dict[str, dict[str, float]]]
"""(metric -> score, question id -> metric -> score)."""
Kinds = dict[str, dict[str, float]]
"""Kind of question -> {"questions": their number, metric: score, ...}."""


def score_answers(scorer: str, predictions: Sequence[Prediction]) -> Scores:
    """Score one answer to each question.

    Args:
        scorer: one of `SCORERS`.
        predictions: the answers, at least one.

    Raises:
        MetricError: there is none, or the truth of one cannot be read.
    """
    if not predictions:
        raise MetricError("there is no answer to score")
    corpus, each = SCORERS[scorer](predictions)
    other = [replace(item, caption=_shuffled(item)) for item in predictions if SHUFFLED in item.extra]
    shuffled = SCORERS[scorer](other)[0] if other else {}
    controls = {f"{name}_shuffled": shuffled[name] for name in HEADLINES if name in corpus and name in shuffled}
    return Scores(corpus, each, controls)


def score_by_kind(scorer: str, predictions: Iterable[Prediction]) -> Kinds:
    """The scores of each kind of question alone, the kinds in the order of their names; arguments as `score_answers`.

    Empty where no question has a kind.
    """
    groups: dict[str, list[Prediction]] = {}
    for item in predictions:
        if kind := str(item.extra.get("kind", "")):
            groups.setdefault(kind, []).append(item)
    scores = {kind: score_answers(scorer, groups[kind]) for kind in sorted(groups)}
    return {kind: {"questions": len(groups[kind]), **found.corpus, **found.controls} for kind, found in scores.items()}


def _shuffled(item: Prediction) -> str:
    text = item.extra[SHUFFLED]
    if not isinstance(text, str):
        raise MetricError(f"question {item.image_id}: '{SHUFFLED}' should be an answer, found {text!r:.80}")
    return text


def _given(item: Prediction) -> Sequence[str]:
    """The reference answers.

    Raises:
        MetricError: There are none; every answer would count as wrong.
    """
    if not item.references:
        raise MetricError(f"question {item.image_id} has no answer in 'references' to compare with")
    return item.references


def box_text(box: Box) -> str:
    """A true box as a reference, unrounded: JSON with `box` and `label`."""
    return json.dumps({"box": list(box.sides), "label": box.label}, ensure_ascii=False)


def true_boxes(item: Prediction) -> list[Box]:
    """The boxes among an answer's references, as `box_text` wrote them.

    Raises:
        MetricError: a reference is something else.
    """
    try:
        return [_true_box(**json.loads(text)) for text in item.references]
    except (ValueError, TypeError, KeyError) as error:
        raise MetricError(f"question {item.image_id}: a reference is no box ({error!r})") from error


def _true_box(box: Sequence[float], label: str) -> Box:
    left, top, right, bottom = map(float, box)
    if not (left < right and top < bottom):  # true of NaN, too
        raise ValueError(f"its sides are {box}")
    return Box(left, top, right, bottom, label)


def _accuracy(rate: Callable[[str, Sequence[str]], float]) -> Callable[[Sequence[Prediction]], Scored]:
    def score(predictions: Sequence[Prediction]) -> Scored:
        each = {item.image_id: {"accuracy": rate(item.caption, _given(item))} for item in predictions}
        return _means(each), each

    return score


def _choice(predictions: Sequence[Prediction]) -> Scored:
    """Accuracy; and the area under the ROC curve, where all questions offer the same two choices and one is right."""
    corpus, each = _accuracy(exact_match)(predictions)
    choices = predictions[0].extra.get("choices")
    if not isinstance(choices, list) or len(choices) != 2:
        return corpus, each
    truths = ((choices[0],), (choices[1],))
    if all(
        item.extra.get("choices") == choices and item.references in truths and "losses" in item.extra
        for item in predictions
    ):
        margins: tuple[list[float], list[float]] = ([], [])
        for item in predictions:
            margins[truths.index(item.references)].append(_margin(item))
        if all(margins):
            corpus["AUROC"] = _share_above(*margins)
    return corpus, each


def _margin(item: Prediction) -> float:
    """By how much the second of two choices is more likely than the first one: a difference of log-likelihoods."""
    losses = item.extra["losses"]
    if not isinstance(losses, list) or len(losses) != 2 or not all(map(is_number, losses)):
        raise MetricError(f"question {item.image_id}: 'losses' should be two numbers, found {shown(losses)}")
    return float(losses[0] - losses[1])


def _share_above(lower: Sequence[float], upper: Sequence[float]) -> float:
    """Share of the pairs of which the second value is the larger one, ties by half: the area under the ROC curve.

    Source: Hanley and McNeil, Radiology 143:29, 1982.
    """
    ordered = sorted(lower)
    above = sum(bisect_left(ordered, value) + bisect_right(ordered, value) for value in upper)
    return above / (2 * len(lower) * len(upper))


def _yes_no(predictions: Sequence[Prediction]) -> Scored:
    """Accuracy, and precision, recall and F1 of yes (POPE, arXiv:2305.10355)."""
    for item in predictions:
        if not all(map(is_yes_or_no, _given(item))):
            raise MetricError(f"question {item.image_id}: its answer is neither yes nor no: {item.references[0]!r:.80}")
    said = [says_yes(item.caption) for item in predictions]
    true = [says_yes(item.references[0]) for item in predictions]
    right = sum(a and b for a, b in zip(said, true, strict=True))
    precision = right / sum(said) if any(said) else 0.0
    recall = right / sum(true) if any(true) else 0.0
    each = {item.image_id: {"accuracy": float(a == b)} for item, a, b in zip(predictions, said, true, strict=True)}
    return _means(each) | {
        "precision": precision,
        "recall": recall,
        "F1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        "yes": sum(said) / len(said),
        "unreadable": sum(not is_yes_or_no(item.caption) for item in predictions) / len(predictions),
    }, each


def _referring(predictions: Sequence[Prediction]) -> Scored:
    """Share of answers whose first box has an IoU of at least 0.5 with the true one; without a box it is 0."""
    each = {}
    for item in predictions:
        found, true = find_boxes(item.caption)[:1], true_boxes(item)
        if len(true) != 1:
            raise MetricError(f"question {item.image_id}: {len(true)} true boxes, where 1 is expected")
        overlap = iou(found[0].sides, true[0].sides) if found else 0.0
        each[item.image_id] = {"IoU_50": float(overlap >= MIN_IOU), "mean_IoU": overlap, "unreadable": float(not found)}
    return _means(each), {key: {name: values[name] for name in ("IoU_50", "mean_IoU")} for key, values in each.items()}


def _detection(predictions: Sequence[Prediction]) -> Scored:
    """COCO's AP and AP50, and the mean of each image's F1 at IoU 0.5."""
    boxes = [(detected_boxes(item.caption), true_boxes(item)) for item in predictions]
    each = {item.image_id: {"box_F1": _box_f1(*pair)} for item, pair in zip(predictions, boxes, strict=True)}
    unreadable = sum(not found and bool(true) for found, true in boxes) / len(boxes)
    return average_precision(boxes) | _means(each) | {"unreadable": unreadable}, each


def _box_f1(found: Sequence[Box], true: Sequence[Box]) -> float:
    """F1 of boxes whose labels agree; 1 where there is nothing to find and nothing was found."""
    if not found and not true:
        return 1.0
    pairs = matched_boxes(*([(box.label, box.sides) for box in boxes] for boxes in (found, true)))
    return 2 * len(pairs) / (len(found) + len(true))


def _means(each: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    names = next(iter(each.values()))
    return {name: sum(values[name] for values in each.values()) / len(each) for name in names}


SCORERS: dict[str, Callable[[Sequence[Prediction]], Scored]] = {
    "soft": _accuracy(soft_accuracy),
    "exact": _accuracy(exact_match),
    "choice": _choice,
    "yes_no": _yes_no,
    "refer": _referring,
    "detection": _detection,
}
"""Scorers by the name in `evaluation.scorer`."""


def fitting_scorer(truth: Iterable[tuple[Sequence[str], bool]]) -> str:
    """The scorer of questions with answers in words.

    Args:
        truth: of each question, the answers that people gave, and whether there are choices.

    Returns:
        choice where every question has choices; yes_no where every answer is yes or no; soft where any question has
        answers of several people; exact otherwise.
    """
    listed = list(truth)
    if listed and all(choices for _, choices in listed):
        return "choice"
    if all(len(answers) == 1 and answers[0].strip().casefold().rstrip(".") in ("yes", "no") for answers, _ in listed):
        return "yes_no"
    return "soft" if any(len(answers) >= AGREEING for answers, _ in listed) else "exact"


@exit_on_error()
def main(arguments: Sequence[str] | None = None) -> None:
    """Score a predictions file of an evaluation, which carries its truth."""
    parser = argparse.ArgumentParser(prog="minigpt4 score-answers", description=main.__doc__)
    parser.add_argument("--preds", required=True, help="predictions file of an evaluation by questions")
    parser.add_argument("--scorer", choices=list(SCORERS), help="how to score (default: as the file says)")
    parser.add_argument("--out", help="JSON file of the scores (default: they are only printed)")
    args = parser.parse_args(arguments)
    if args.out:
        check_replaceable(args.out, ("rows", "per_question"))
    file = load_predictions(args.preds)
    scorer = args.scorer or next((name for name in SCORERS if [name] == file.protocol.get("metrics")), None)
    if scorer is None:
        raise MetricError(f"{args.preds} does not say how to score it; name one of {', '.join(SCORERS)} by --scorer")
    scores = score_answers(scorer, file.predictions)
    label = Path(args.preds).stem.removeprefix(PREFIX)
    row = {"checkpoint": label, **scores.corpus, **scores.controls}
    kinds = {label: score_by_kind(scorer, file.predictions)}
    if args.out:
        with writing(args.out):
            intervals = {"intervals_95": bootstrap_intervals(scores.per_image), "note": intervals_note("questions")}
            write_json(args.out, {"rows": [row], "kinds": kinds, **intervals, "per_question": scores.per_image})
    tables = [ScoreTable([row]), *(kind_table(metric, kinds) for metric in HEADLINES)]
    for table in filter(None, tables):
        Console().print(table)


if __name__ == "__main__":
    main()

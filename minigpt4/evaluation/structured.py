"""Answers that are data: named boxes, and triples; parsed tolerantly, every failure counted, and scored.

A model's JSON may be part of a sentence, be cut off or hold a wrong entry: every valid entry is used.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rich.console import Console

from minigpt4.common.boxes import Box, Sides, find_boxes, iou
from minigpt4.common.cli import exit_on_error
from minigpt4.common.errors import MetricError
from minigpt4.common.files import write_json, writing
from minigpt4.evaluation.predictions import load_predictions
from minigpt4.evaluation.scores_file import check_replaceable

NamedBox = tuple[str, Sides]
"""Name, and sides as shares of the image's."""
Triple = tuple[str, str, str]
T = TypeVar("T")

MIN_IOU = 0.5 - 1e-9
"""IoU from which a box counts as found: 0.5, also where the arithmetic of shares gives 0.4999999999999999."""
_STRING = r'"((?:[^"\\]|\\.)*)"'
_ENTRY = re.compile(_STRING + r"\s*:\s*\[([^\[\]]*)\]")
_TRIPLE = re.compile(r"\[\s*" + r"\s*,\s*".join([_STRING] * 3) + r"\s*\]")
_LIST = re.compile(r"\[[^\[\]]*\]")


@dataclass(frozen=True, slots=True)
class Parsed(Generic[T]):
    """The content of an answer.

    Attributes:
        items: valid entries, in order.
        wrong: number of invalid entries.
        failed: there is no valid entry, and the answer does not say that there is none (`{}`, `[]`).
    """

    items: tuple[T, ...]
    wrong: int
    failed: bool


def parse_boxes(text: str) -> Parsed[NamedBox]:
    """The named boxes of an answer such as `{"dog1": [0.100, 0.200, 0.500, 0.900]}`."""
    entries = _ENTRY.findall(text)
    boxes = [(_unquote(name), box) for name, numbers in entries if (box := _box(numbers)) is not None]
    wrong = len(_LIST.findall(text)) - len(boxes)
    empty = re.search(r"\{\s*\}", text) is not None
    return Parsed(tuple(boxes), max(0, wrong), not boxes and not empty)


def parse_triples(text: str) -> Parsed[Triple]:
    """The triples of an answer such as `[["Ann", "age", "31"]]`."""
    found = [(_unquote(a), _unquote(b), _unquote(c)) for a, b, c in _TRIPLE.findall(text)]
    # Brackets within a string are no entries.
    rest = _TRIPLE.sub("", text)
    wrong = sum(bool(entry.strip("[], \n")) for entry in _LIST.findall(rest))
    empty = re.fullmatch(r"\s*\[\s*(\[\s*\])?\s*\]\s*", text) is not None
    return Parsed(tuple(found), wrong, not found and not empty)


def _unquote(text: str) -> str:
    try:
        return str(json.loads(f'"{text}"', strict=False))
    except ValueError:
        return text


def _box(numbers: str) -> Sides | None:
    try:
        values = [float(number) for number in numbers.split(",")]
    except ValueError:
        return None
    if len(values) != 4 or not all(math.isfinite(value) and 0 <= value <= 1 for value in values):
        return None
    xmin, ymin, xmax, ymax = values
    return (xmin, ymin, xmax, ymax) if xmin <= xmax and ymin <= ymax else None


def detected_boxes(text: str) -> list[Box]:
    """The boxes of an answer in either form, as `find_boxes` or `parse_boxes` reads it.

    The number that JSON's names end with is no part of a label; boxes without an area are left out.
    """
    return find_boxes(text) or [
        Box(*sides, label=_base(name))
        for name, sides in parse_boxes(text).items
        if sides[0] < sides[2] and sides[1] < sides[3]
    ]


def matched_boxes(found: Sequence[NamedBox], wanted: Sequence[NamedBox]) -> list[float]:
    """IoUs of pairs of boxes of the same name: greedily, best pairs first, each box in one pair, none below `MIN_IOU`.

    Numbers do not matter: "dog1" may be paired with "dog2", since both are dogs.
    """
    pairs = [
        (iou(a, b), i, j)
        for i, (name, a) in enumerate(found)
        for j, (other, b) in enumerate(wanted)
        if _base(name) == _base(other)
    ]
    left, right, matched = set[int](), set[int](), list[float]()
    for value, i, j in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2])):
        if value >= MIN_IOU and i not in left and j not in right:
            left.add(i)
            right.add(j)
            matched.append(value)
    return matched


def _base(name: str) -> str:
    return re.sub(r"\d+$", "", _plain(name)).strip()


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def box_scores(answers: Iterable[tuple[str, str]]) -> dict[str, float]:
    """Precision, recall and F1 of boxes over all images, mean IoU of the pairs, and counts of parsing failures.

    Args:
        answers: (prediction, reference) of each image.

    Raises:
        MetricError: there is no answer, or a reference cannot be parsed.
    """
    ious: list[float] = []

    def hits(found: Sequence[NamedBox], wanted: Sequence[NamedBox]) -> int:
        matched = matched_boxes(found, wanted)
        ious.extend(matched)
        return len(matched)

    scores = _scores(answers, parse_boxes, hits)
    return scores | {"mean_iou": sum(ious) / len(ious) if ious else 0.0}


def triple_scores(answers: Iterable[tuple[str, str]]) -> dict[str, float]:
    """The same of triples, which must agree except for case and spaces; arguments and errors as for `box_scores`."""

    def hits(found: Sequence[Triple], wanted: Sequence[Triple]) -> int:
        predicted, true = (Counter(tuple(map(_plain, triple)) for triple in listed) for listed in (found, wanted))
        return (predicted & true).total()

    return _scores(answers, parse_triples, hits)


def _scores(
    answers: Iterable[tuple[str, str]],
    parse: Callable[[str], Parsed[T]],
    hits: Callable[[Sequence[T], Sequence[T]], int],
) -> dict[str, float]:
    number = right = predicted = true = wrong = failed = 0
    for number, (answer, reference) in enumerate(answers, 1):
        found, wanted = parse(answer), parse(reference)
        if wanted.failed or wanted.wrong:
            raise MetricError(f"reference {number} cannot be read: {reference[:80]!r}")
        right += hits(found.items, wanted.items)
        # Invalid entries count as predicted: a model must not gain by them.
        predicted += len(found.items) + found.wrong
        true += len(wanted.items)
        wrong += found.wrong
        failed += found.failed
    if not number:
        raise MetricError("no answers to score")
    precision = right / predicted if predicted else float(not true)
    recall = right / true if true else float(not predicted)
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    counts = {"answers": float(number), "wrong_entries": float(wrong), "unreadable_answers": float(failed)}
    return {"precision": precision, "recall": recall, "f1": f1} | counts


SCORERS = {"boxes": box_scores, "triples": triple_scores}


@exit_on_error()
def main(arguments: Sequence[str] | None = None) -> None:
    """Score a predictions file of an evaluation, which carries its references."""
    parser = argparse.ArgumentParser(prog="minigpt4 score-structured", description=main.__doc__)
    parser.add_argument("kind", choices=list(SCORERS))
    parser.add_argument("--preds", required=True, help="predictions file of eval_scripts/eval_flickr30k.py")
    parser.add_argument("--out", help="JSON file of the scores (default: they are only printed)")
    args = parser.parse_args(arguments)
    if args.out:
        check_replaceable(args.out, ("precision", "recall", "wrong_entries"))
    answers = []
    for item in load_predictions(args.preds).predictions:
        if len(item.references) != 1:
            raise MetricError(
                f"{args.preds}: image {item.image_id} has {len(item.references)} references; 1 is expected"
            )
        answers.append((item.caption, item.references[0]))
    scores = SCORERS[args.kind](answers)
    if args.out:
        with writing(args.out):
            write_json(args.out, scores)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(", ".join(f"{name} {value:.3f}".removesuffix(".000") for name, value in scores.items()))


if __name__ == "__main__":
    main()

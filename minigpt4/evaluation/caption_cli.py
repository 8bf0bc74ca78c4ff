"""The command `python -m minigpt4.evaluation.caption`: scores of predictions that exist already."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from minigpt4.common.cli import exit_on_error
from minigpt4.common.errors import MetricError
from minigpt4.evaluation.caption import DEFAULT_METRICS, METRICS, check_metrics, score_captions
from minigpt4.evaluation.caption_files import ReferenceFile, read_predictions, read_references, references_of
from minigpt4.evaluation.intervals import NOTE, bootstrap_intervals
from minigpt4.evaluation.json_files import write_json
from minigpt4.evaluation.protocol import Protocol
from minigpt4.evaluation.table import build_table


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m minigpt4.evaluation.caption",
        description="Score captions that exist already against their references.",
    )
    parser.add_argument(
        "--refs", help="references: COCO or Flickr30k JSON; a predictions file that carries its own needs none"
    )
    parser.add_argument(
        "--preds", required=True, help="predictions: COCO results, {id: caption}, or a predictions file"
    )
    parser.add_argument(
        "--metrics",
        default=",".join(DEFAULT_METRICS),
        help=f"comma-separated, out of {','.join(METRICS)} (default: %(default)s)",
    )
    parser.add_argument("--split", help="score this split of the references only, e.g. test")
    parser.add_argument(
        "--only-predicted",
        action="store_true",
        help="score only the images that have a prediction, instead of refusing where some have none",
    )
    parser.add_argument("--label", help="name of the row (default: the file name of the predictions)")
    parser.add_argument("--out", default="metrics.json", help="where the scores go (default: %(default)s)")
    return parser


def select(
    references: ReferenceFile, predictions: dict[str, str], split: str | None, only_predicted: bool
) -> ReferenceFile:
    """The references to score against.

    Raises:
        MetricError: the split is unknown, or the predictions cover it in part.
    """
    chosen = references.of_split(split)
    if only_predicted:
        chosen = chosen.only(predictions)
        if not chosen.captions:
            raise MetricError("no prediction is for an image of the references: do the ids mean the same?")
        return chosen
    missing = [key for key in chosen.captions if key not in predictions]
    if not missing or not predictions:
        return chosen
    covered = {references.splits[key] for key in predictions if key in references.splits}
    hint = "--only-predicted scores the images that have one"
    if split is None and len(covered) == 1:
        hint = f"all predictions are of one split: score it with --split {covered.pop()}"
    elif not any(key in references.captions for key in predictions):
        hint = f"no id is in both files: references have e.g. {missing[0]}, predictions {next(iter(predictions))}"
    raise MetricError(f"{len(missing)} of {len(chosen.captions)} images have no prediction; {hint}")


@exit_on_error()
def main(arguments: Sequence[str] | None = None) -> None:
    """Score, print the table and write the scores."""
    args = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    metrics = check_metrics(args.metrics)
    predictions, file = read_predictions(args.preds)
    if args.refs:
        references = read_references(args.refs)
    elif file is not None:
        references = references_of(file)
    else:
        raise MetricError(f"{args.preds} carries no references of its own: name them with --refs")
    chosen = select(references, predictions, args.split, args.only_predicted)
    if args.split:
        # What is known to belong to another split is no mistake, unlike an id that the references lack.
        predictions = {k: v for k, v in predictions.items() if references.splits.get(k, args.split) == args.split}
    scores = score_captions(chosen.captions, predictions, metrics)
    made = file.protocol if file is not None else {}
    splits = set(chosen.splits.values())
    protocol = Protocol.of(
        chosen.captions,
        metrics,
        dataset=str(args.refs or made.get("dataset") or args.preds),
        split=args.split or (splits.pop() if len(splits) == 1 else None),
        prompt=made.get("prompt"),
        generation=made.get("generation"),
        selection={"only_predicted": True} if args.only_predicted else made.get("selection"),
        notes={"predictions": str(args.preds), "intervals_95": NOTE},
    )
    row = {"checkpoint": args.label or Path(args.preds).stem, **scores.corpus}
    intervals = {row["checkpoint"]: bootstrap_intervals(scores.per_image)}
    content = {"protocol": protocol.to_dict(), "rows": [row], "intervals_95": intervals, "per_image": scores.per_image}
    write_json(args.out, content)
    console = Console()
    console.print(build_table([row], caption=protocol.summary()))
    console.print(f"scores: {args.out}", highlight=False, markup=False, soft_wrap=True)

"""The command `python -m minigpt4.evaluation.structured`: scores of boxes or triples that were predicted already."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console

from minigpt4.common.cli import exit_on_error
from minigpt4.common.errors import MetricError
from minigpt4.evaluation.json_files import write_json
from minigpt4.evaluation.predictions import load_predictions
from minigpt4.evaluation.structured import SCORERS


@exit_on_error()
def main(arguments: Sequence[str] | None = None) -> None:
    """Score a predictions file of an evaluation, which carries its references."""
    parser = argparse.ArgumentParser(prog="python -m minigpt4.evaluation.structured", description=__doc__)
    parser.add_argument("kind", choices=list(SCORERS))
    parser.add_argument("--preds", required=True, help="predictions file of eval_scripts/eval_flickr30k.py")
    parser.add_argument("--out", help="where the scores go as JSON (default: they are printed only)")
    args = parser.parse_args(arguments)
    answers = []
    for item in load_predictions(args.preds).predictions:
        if len(item.references) != 1:
            raise MetricError(
                f"{args.preds}: image {item.image_id} has {len(item.references)} references; 1 is expected"
            )
        answers.append((item.caption, item.references[0]))
    scores = SCORERS[args.kind](answers)
    if args.out:
        write_json(args.out, scores)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(", ".join(f"{name} {value:.3f}".removesuffix(".000") for name, value in scores.items()))

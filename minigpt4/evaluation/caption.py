"""Caption metrics: BLEU-1..4, ROUGE-L, CIDEr, METEOR and SPICE by pycocoevalcap's scorers.

A corpus is always scored as one: CIDEr weighs words by how many images' references hold them, so the mean of the CIDErs
of two shards is not the CIDEr of both. Predictions are merged before they are scored.

`python -m minigpt4.evaluation.caption` scores predictions that exist already.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from minigpt4.common.cli import exit_on_error
from minigpt4.common.errors import MetricError, did_you_mean
from minigpt4.common.files import write_json
from minigpt4.evaluation.java import check_tokenizer, tokenize
from minigpt4.evaluation.meteor_spice import check_java_scorer, score_with_java
from minigpt4.evaluation.predictions import (
    ReferenceFile,
    by_id,
    name_ids,
    read_predictions,
    read_references,
    references_of,
)
from minigpt4.evaluation.protocol import Protocol
from minigpt4.evaluation.statistics import NOTE, bootstrap_intervals
from minigpt4.evaluation.table import build_table

logger = logging.getLogger(__name__)

Captions = dict[str, list[str]]
"""Image id -> captions."""


def check_references(references: Mapping[str, Sequence[str]]) -> Captions:
    """The references by string ids.

    Raises:
        MetricError: there are none, an id comes twice, or an image has no or an empty reference.
    """
    wanted = by_id(references.items(), "references")
    if not wanted:
        raise MetricError("there are no references, so there is nothing to score")
    checked: Captions = {}
    wrong = []
    for key, captions in wanted.items():
        if isinstance(captions, str) or not isinstance(captions, Sequence):
            raise MetricError(f"references of image {key} are not a list of captions: {captions!r}")
        checked[key] = list(captions)
        if not captions or not all(isinstance(text, str) and text.strip() for text in captions):
            wrong.append(key)
    if wrong:
        raise MetricError(f"{len(wrong)} image(s) have no reference, or an empty one: {name_ids(wrong)}")
    return checked


def check_words(tokenized: Captions) -> None:
    """Refuse references without a word, which would match an empty prediction.

    Raises:
        MetricError: a reference was nothing but punctuation, so that no token is left.
    """
    wrong = [key for key, captions in tokenized.items() if not all(captions)]
    if wrong:
        raise MetricError(f"{len(wrong)} image(s) have a reference without a single word: {name_ids(wrong)}")


def check_predictions(wanted: Captions, predictions: Mapping[str, str], label: str) -> dict[str, str]:
    """The predictions by string ids, in the order of the references.

    Args:
        wanted: what `check_references` returned.
        predictions: image id -> caption.
        label: the checkpoint, for messages; may be empty.

    Raises:
        MetricError: a prediction is missing, is for an unknown image, comes twice or is not text.
    """
    what = f"predictions of {label}" if label else "predictions"
    found = by_id(predictions.items(), what)
    missing = [key for key in wanted if key not in found]
    if missing:
        raise MetricError(
            f"{what}: {len(missing)} of {len(wanted)} images with references have none: {name_ids(missing)}"
        )
    extra = [key for key in found if key not in wanted]
    if extra:
        raise MetricError(f"{what}: {len(extra)} are for images without references: {name_ids(extra)}")
    checked = {}
    for key in wanted:
        text = found[key]
        if not isinstance(text, str):
            raise MetricError(f"{what}: the caption of image {key} is not text: {text!r}")
        checked[key] = text
    empty = [key for key, text in checked.items() if not text.strip()]
    if empty:
        logger.warning("%s: %d of %d are empty: %s", what, len(empty), len(checked), name_ids(empty))
    return checked


DEFAULT_METRICS = ("bleu", "rouge", "cider")

Tokens = Captions
PerImage = dict[str, dict[str, float]]


@dataclass(frozen=True)
class CaptionScores:
    """Scores of one set of predictions.

    Attributes:
        corpus: metric -> score of the whole corpus; the names are Bleu_1..Bleu_4, ROUGE_L, CIDEr, METEOR, SPICE.
        per_image: image id -> metric -> score of that image.
    """

    corpus: dict[str, float]
    per_image: PerImage


def parse_metrics(metrics: str | Sequence[str]) -> tuple[str, ...]:
    """Metric names, each once and in small letters, from a list or a comma-separated string.

    Raises:
        MetricError: an unknown name, or none.
    """
    words = metrics.split(",") if isinstance(metrics, str) else metrics
    names = tuple(dict.fromkeys(word.strip().lower() for word in words if word.strip()))
    if not names:
        raise MetricError(f"no metric is named; known: {', '.join(_SCORERS)}")
    for name in names:
        if name not in _SCORERS:
            raise MetricError(f"unknown metric '{name}': {did_you_mean(name, _SCORERS)}")
    return names


def check_metrics(metrics: str | Sequence[str]) -> tuple[str, ...]:
    """Make sure that the metrics can be computed here; to be called before hours of generation.

    Args:
        metrics: names out of bleu, rouge, cider, meteor, spice; a list or a comma-separated string.

    Returns:
        The names, each once, in small letters.

    Raises:
        MetricError: an unknown name, or no Java, no pycocoevalcap, or a metric's files are missing.
    """
    names = parse_metrics(metrics)
    check_tokenizer()
    for name in names:
        if name in ("meteor", "spice"):
            check_java_scorer(name)
    return names


def score_captions(
    references: Mapping[str, Sequence[str]],
    predictions: Mapping[str, str],
    metrics: str | Sequence[str] = DEFAULT_METRICS,
    timeout: float | None = None,
) -> CaptionScores:
    """Score one prediction an image against the image's references.

    Args:
        references: image id -> captions. Ids are compared as strings: 1 and "1" are one image.
        predictions: image id -> caption, for exactly the same images. An empty caption is scored as such.
        metrics: names out of bleu, rouge, cider, meteor, spice.
        timeout: seconds METEOR or SPICE may take; by default it grows with the number of images.

    Raises:
        MetricError: ids that do not fit, an image without references, or a metric that cannot be computed.
    """
    return score_checkpoints(references, {"": predictions}, metrics, timeout)[""]


def score_checkpoints(
    references: Mapping[str, Sequence[str]],
    predictions: Mapping[str, Mapping[str, str]],
    metrics: str | Sequence[str] = DEFAULT_METRICS,
    timeout: float | None = None,
) -> dict[str, CaptionScores]:
    """Score the predictions of several checkpoints for the same images.

    As `score_captions` for each, but everything is tokenized in one go: Java starts once.

    Args:
        references: image id -> captions.
        predictions: checkpoint -> image id -> caption.
        metrics: names out of bleu, rouge, cider, meteor, spice.
        timeout: seconds METEOR or SPICE may take for one checkpoint.

    Returns:
        Checkpoint -> scores, in the order of `predictions`.

    Raises:
        MetricError: as `score_captions`; the message names the checkpoint.
    """
    names = parse_metrics(metrics)
    wanted = check_references(references)
    found = {label: check_predictions(wanted, given, label) for label, given in predictions.items()}
    texts = [text for captions in wanted.values() for text in captions]
    texts += [text for captions in found.values() for text in captions.values()]
    tokens = iter(tokenize(texts))
    gold = {key: [next(tokens) for _ in captions] for key, captions in wanted.items()}
    check_words(gold)
    if "cider" in names and len(gold) == 1:
        logger.warning("CIDEr of a single image is 0 by its definition: every word is in all references")
    scored = {}
    for label, captions in found.items():
        results = {key: [next(tokens)] for key in captions}
        scored[label] = _score(gold, results, names, timeout)
    return scored


def _score(gold: Tokens, results: Tokens, names: Iterable[str], timeout: float | None) -> CaptionScores:
    corpus: dict[str, float] = {}
    per_image: PerImage = {key: {} for key in gold}
    for name in names:
        for metric, (score, scores) in _SCORERS[name](gold, results, timeout).items():
            corpus[metric] = score
            for key, value in scores.items():
                per_image[key][metric] = value
    return CaptionScores(corpus, per_image)


_Scored = dict[str, tuple[float, dict[str, float]]]


def _bleu(gold: Tokens, results: Tokens, timeout: float | None) -> _Scored:
    from pycocoevalcap.bleu.bleu import Bleu

    scores, per_image = Bleu(4).compute_score(gold, results, verbose=0)
    return {
        f"Bleu_{order + 1}": (float(score), dict(zip(gold, map(float, values), strict=True)))
        for order, (score, values) in enumerate(zip(scores, per_image, strict=True))
    }


def _rouge(gold: Tokens, results: Tokens, timeout: float | None) -> _Scored:
    from pycocoevalcap.rouge.rouge import Rouge

    score, values = Rouge().compute_score(gold, results)
    return {"ROUGE_L": (float(score), dict(zip(gold, map(float, values), strict=True)))}


def _cider(gold: Tokens, results: Tokens, timeout: float | None) -> _Scored:
    from pycocoevalcap.cider.cider import Cider

    score, values = Cider().compute_score(gold, results)
    return {"CIDEr": (float(score), dict(zip(gold, map(float, values), strict=True)))}


def _meteor(gold: Tokens, results: Tokens, timeout: float | None) -> _Scored:
    return {"METEOR": score_with_java("meteor", gold, {k: v[0] for k, v in results.items()}, timeout)}


def _spice(gold: Tokens, results: Tokens, timeout: float | None) -> _Scored:
    return {"SPICE": score_with_java("spice", gold, {k: v[0] for k, v in results.items()}, timeout)}


_SCORERS: dict[str, Callable[[Tokens, Tokens, float | None], _Scored]] = {
    "bleu": _bleu,
    "rouge": _rouge,
    "cider": _cider,
    "meteor": _meteor,
    "spice": _spice,
}
METRICS = tuple(_SCORERS)


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


if __name__ == "__main__":
    main()

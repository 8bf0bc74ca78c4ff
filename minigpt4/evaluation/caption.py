"""Caption metrics: BLEU-1..4, ROUGE-L, CIDEr, METEOR and SPICE by pycocoevalcap's scorers.

A corpus is always scored as one: CIDEr weighs words by how many images' references hold them, so the mean of the CIDErs
of two shards is not the CIDEr of both. Predictions are merged before they are scored.

`python -m minigpt4.evaluation.caption` scores existing predictions.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from minigpt4.common.cli import exit_on_error
from minigpt4.common.errors import MetricError, did_you_mean, first_few
from minigpt4.common.files import write_json, writing
from minigpt4.evaluation.java import check_tokenizer, tokenize
from minigpt4.evaluation.predictions import (
    PREFIX,
    Protocol,
    ReferenceFile,
    by_id,
    read_predictions,
    read_references,
    references_of,
)
from minigpt4.evaluation.scores_file import check_replaceable
from minigpt4.evaluation.statistics import PerImage, Scores, bootstrap_intervals, intervals_note, swap_images
from minigpt4.evaluation.table import ScoreTable

METRICS = ("bleu", "rouge", "cider", "meteor", "spice")
JAVA_METRICS = ("meteor", "spice")
"""Metrics whose scorers are Java programs."""
DEFAULT_METRICS = ("bleu", "rouge", "cider")
"""The metrics that need only the tokenizer's Java."""

CONTROLS = {"cider": "CIDEr", "rouge": "ROUGE_L", "bleu": "Bleu_4", "meteor": "METEOR", "spice": "SPICE"}
"""Scorer -> its metric that is also measured with shuffled images; the first one that is requested."""
SWAP_SEED = 42
"""Seed of the shuffled images where none is given."""
Captions = dict[str, list[str]]
"""Image id -> captions."""

logger = logging.getLogger(__name__)


def parse_metrics(metrics: str | Sequence[str]) -> tuple[str, ...]:
    """Metric names, each once and in lower case, from a list or a comma-separated string.

    Raises:
        MetricError: a name is unknown, or there is none.
    """
    words = metrics.split(",") if isinstance(metrics, str) else metrics
    names = tuple(dict.fromkeys(word.strip().lower() for word in words if word.strip()))
    if not names:
        raise MetricError(f"no metric is named; known: {', '.join(METRICS)}")
    for name in names:
        if name not in METRICS:
            raise MetricError(f"unknown metric '{name}': {did_you_mean(name, METRICS)}")
    return names


def check_metrics(metrics: str | Sequence[str]) -> tuple[str, ...]:
    """Make sure that the metrics can be computed here, before hours of generation.

    Args:
        metrics: any of bleu, rouge, cider, meteor, spice; a list or a comma-separated string.

    Returns:
        The names, each once, in lower case.

    Raises:
        MetricError: a name is unknown; or Java, pycocoevalcap or a metric's files are missing.
    """
    names = parse_metrics(metrics)
    check_tokenizer()
    for name in names:
        if name in JAVA_METRICS:
            from minigpt4.evaluation.meteor_spice import check_java_scorer

            check_java_scorer(name)
    return names


def score_captions(
    references: Mapping[str, Sequence[str]],
    predictions: Mapping[str, str],
    metrics: str | Sequence[str] = DEFAULT_METRICS,
    timeout: float | None = None,
    seed: int = SWAP_SEED,
) -> Scores:
    """Score one prediction per image against the image's references.

    Args:
        references: image id -> captions. Ids are compared as strings: 1 and "1" are one image.
        predictions: image id -> caption, for exactly the same images. An empty caption is scored as such.
        metrics: any of bleu, rouge, cider, meteor, spice.
        timeout: seconds that METEOR or SPICE may take; the default grows with the number of images.
        seed: seed of the shuffled images.

    Raises:
        MetricError: the ids differ, an image has no references, or a metric cannot be computed.
    """
    return score_checkpoints(references, {"": predictions}, metrics, timeout, seed)[""]


def score_checkpoints(
    references: Mapping[str, Sequence[str]],
    predictions: Mapping[str, Mapping[str, str]],
    metrics: str | Sequence[str] = DEFAULT_METRICS,
    timeout: float | None = None,
    seed: int = SWAP_SEED,
) -> dict[str, Scores]:
    """Score the predictions of several checkpoints for the same images.

    The scores are those of `score_captions`, but all captions are tokenized together: Java starts once.

    Args:
        references: image id -> captions.
        predictions: checkpoint -> image id -> caption.
        metrics: any of bleu, rouge, cider, meteor, spice.
        timeout: seconds that METEOR or SPICE may take for one checkpoint.
        seed: seed of the shuffled images.

    Returns:
        Checkpoint -> scores, in the order of `predictions`.

    Raises:
        MetricError: as for `score_captions`; the message names the checkpoint.
    """
    names = parse_metrics(metrics)
    checked = check_references(references)
    captions = {label: _check_predictions(checked, given, label) for label, given in predictions.items()}
    texts = [text for listed in checked.values() for text in listed]
    texts += [text for listed in captions.values() for text in listed.values()]
    tokens = iter(tokenize(texts))
    gold = {key: [next(tokens) for _ in listed] for key, listed in checked.items()}
    # Such a reference would match an empty prediction.
    wordless = [key for key, listed in gold.items() if not all(listed)]
    if wordless:
        raise MetricError(f"{len(wordless)} image(s) have a reference without a single word: {first_few(wordless)}")
    if "cider" in names and len(gold) == 1:
        logger.warning("CIDEr of a single image is 0 by its definition: every word is in all references")
    scores = {}
    for label in captions:
        results = {key: next(tokens) for key in gold}
        corpus: dict[str, float] = {}
        counts: dict[str, dict[str, tuple[float, ...]]] = {}
        per_image: PerImage = {key: {} for key in gold}
        for name in names:
            computed, counted = _compute(name, gold, results, timeout)
            if counted:
                counts[name] = counted
            for metric, (score, values) in computed.items():
                corpus[metric] = score
                for key, value in values.items():
                    per_image[key][metric] = value
        controls = {}
        if len(gold) > 1:
            name, metric = next((name, metric) for name, metric in CONTROLS.items() if name in names)
            shuffled, _ = _compute(name, gold, swap_images(results, seed), timeout)
            controls[f"{metric}_shuffled"] = shuffled[metric][0]
        scores[label] = Scores(corpus, per_image, controls, counts)
    return scores


def check_references(references: Mapping[str, Sequence[str]]) -> Captions:
    """The references with string ids.

    Raises:
        MetricError: there are none, an id comes twice, or an image has no reference or an empty one.
    """
    listed = by_id(references.items(), "references")
    if not listed:
        raise MetricError("there are no references, so there is nothing to score")
    wrong = []
    for key, captions in listed.items():
        if isinstance(captions, str) or not isinstance(captions, Sequence):
            raise MetricError(f"references of image {key} are not a list of captions: {captions!r}")
        if not captions or not all(isinstance(text, str) and text.strip() for text in captions):
            wrong.append(key)
    if wrong:
        raise MetricError(f"{len(wrong)} image(s) have no reference, or an empty one: {first_few(wrong)}")
    return {key: list(captions) for key, captions in listed.items()}


def _check_predictions(references: Captions, predictions: Mapping[str, str], label: str) -> dict[str, str]:
    """The predictions with string ids, in the order of the references.

    Args:
        references: what `check_references` returned.
        predictions: image id -> caption.
        label: name of the checkpoint, for messages; may be empty.

    Raises:
        MetricError: a prediction is missing, is for an unknown image, comes twice or is not text.
    """
    what = f"predictions of {label}" if label else "predictions"
    found = by_id(predictions.items(), what)
    missing = [key for key in references if key not in found]
    if missing:
        raise MetricError(
            f"{what}: {len(missing)} of {len(references)} images with references have none: {first_few(missing)}"
        )
    extra = [key for key in found if key not in references]
    if extra:
        raise MetricError(f"{what}: {len(extra)} are for images without references: {first_few(extra)}")
    for key, text in found.items():
        if not isinstance(text, str):
            raise MetricError(f"{what}: the caption of image {key} is not text: {text!r}")
    checked = {key: found[key] for key in references}
    empty = [key for key, text in checked.items() if not text.strip()]
    if empty:
        logger.warning("%s: %d of %d are empty: %s", what, len(empty), len(checked), first_few(empty))
    return checked


def _compute(
    name: str, gold: Captions, results: Mapping[str, str], timeout: float | None
) -> tuple[dict[str, tuple[float, dict[str, float]]], dict[str, tuple[float, ...]]]:
    """One of `METRICS` of tokenized captions: metric -> (score of the corpus, score of every image), and its counts.

    The counts are image id -> counts, as in `Scores.counts`; empty where the corpus score is a mean.
    """
    if name in JAVA_METRICS:
        from minigpt4.evaluation.meteor_spice import score_with_java

        score, values, counts = score_with_java(name, gold, results, timeout)
        return {name.upper(): (score, values)}, counts
    counts = {}
    listed = {key: [caption] for key, caption in results.items()}
    if name == "bleu":
        from pycocoevalcap.bleu.bleu import Bleu

        orders, values = Bleu(4).compute_score(gold, listed, verbose=0)
        scored = {f"Bleu_{n}": pair for n, pair in enumerate(zip(orders, values, strict=True), 1)}
        counts = _bleu_counts(gold, results)
    elif name == "rouge":
        from pycocoevalcap.rouge.rouge import Rouge

        scored = {"ROUGE_L": Rouge().compute_score(gold, listed)}
    elif name == "cider":
        from pycocoevalcap.cider.cider import Cider

        scored = {"CIDEr": Cider().compute_score(gold, listed)}
    else:
        raise AssertionError(f"{name} is in METRICS and is not computed")
    computed = {
        metric: (float(score), dict(zip(gold, map(float, values), strict=True)))
        for metric, (score, values) in scored.items()
    }
    return computed, counts


def _bleu_counts(gold: Captions, results: Mapping[str, str]) -> dict[str, tuple[float, ...]]:
    """What `corpus_bleu` sums, of every image's tokenized caption."""
    from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test

    counts = {}
    for key, texts in gold.items():
        counted = cook_test(results[key], cook_refs(texts), eff="closest")
        counts[key] = (*counted["correct"], *counted["guess"], counted["testlen"], counted["reflen"])
    return counts


@exit_on_error()
def main(arguments: Sequence[str] | None = None) -> None:
    """Score existing predictions, print the table and write the scores."""
    args = _parse_arguments(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if args.out:
        check_replaceable(args.out, ("rows", "per_image"))
    metrics = check_metrics(args.metrics)
    predictions, file = read_predictions(args.preds)
    if args.refs:
        references = read_references(args.refs)
    elif file is not None:
        references = references_of(file)
    else:
        raise MetricError(f"{args.preds} carries no references of its own: name them with --refs")
    chosen = _choose_references(references, predictions, args.split, args.only_predicted)
    if args.split:
        # A prediction known to belong to another split is no mistake, unlike an id that the references lack.
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
        notes={"predictions": str(args.preds), "intervals_95": intervals_note()},
    )
    row = {"checkpoint": args.label or Path(args.preds).stem.removeprefix(PREFIX), **scores.corpus, **scores.controls}
    intervals = {row["checkpoint"]: bootstrap_intervals(scores.per_image)}
    content = {"protocol": protocol.to_dict(), "rows": [row], "intervals_95": intervals, "per_image": scores.per_image}
    console = Console()
    if args.out:
        with writing(args.out):
            write_json(args.out, content)
    console.print(ScoreTable([row], caption=protocol.summary()))
    if args.out:
        console.print(f"scores: {args.out}", highlight=False, markup=False, soft_wrap=True)


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="minigpt4 score", description="Score existing captions against their references."
    )
    parser.add_argument(
        "--refs", help="references: COCO or Flickr30k JSON; not needed for a predictions file that carries its own"
    )
    parser.add_argument(
        "--preds", required=True, help="predictions: COCO results, {id: caption}, or a predictions file"
    )
    parser.add_argument(
        "--metrics",
        default=",".join(DEFAULT_METRICS),
        help=f"comma-separated, any of {','.join(METRICS)} (default: %(default)s)",
    )
    parser.add_argument("--split", help="score only this split of the references, e.g. test")
    parser.add_argument(
        "--only-predicted",
        action="store_true",
        help="score only the images that have a prediction, instead of refusing where some have none",
    )
    parser.add_argument("--label", help="name of the row (default: file name of the predictions, without predictions_)")
    parser.add_argument("--out", metavar="FILE", help="JSON file of the scores (default: they are only printed)")
    return parser.parse_args(arguments)


def _choose_references(
    references: ReferenceFile, predictions: Mapping[str, str], split: str | None, only_predicted: bool
) -> ReferenceFile:
    """The references to score against.

    Raises:
        MetricError: the split is unknown, or the predictions cover only a part of it.
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


if __name__ == "__main__":
    main()

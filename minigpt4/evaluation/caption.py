"""Caption metrics: BLEU-1..4, ROUGE-L, CIDEr, METEOR and SPICE by pycocoevalcap's scorers.

A corpus is always scored whole. CIDEr weighs words by how many images' references hold them, so that the mean
of the CIDErs of two shards is not the CIDEr of both: predictions are merged before they are scored.

Run as `python -m minigpt4.evaluation.caption` it scores predictions that exist already.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from minigpt4.common.errors import MetricError, did_you_mean
from minigpt4.evaluation.caption_inputs import Captions, check_predictions, check_references, check_words
from minigpt4.evaluation.java_scorers import check_java_scorer, score_with_java
from minigpt4.evaluation.ptb import check_tokenizer, tokenize

logger = logging.getLogger(__name__)

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


if __name__ == "__main__":
    from minigpt4.evaluation.caption_cli import main

    main()

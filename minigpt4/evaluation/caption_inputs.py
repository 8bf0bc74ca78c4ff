"""References and predictions made comparable: ids as strings, and nothing missing, extra, twice or empty."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from minigpt4.common.errors import MetricError

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

_NAMED = 5
"""How many ids an error message names."""

Captions = dict[str, list[str]]
"""Image id -> captions."""


def name_ids(ids: Iterable[str]) -> str:
    """The first few ids and how many more there are."""
    listed = list(ids)
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + more


def by_id(items: Iterable[tuple[object, Value]], what: str) -> dict[str, Value]:
    """A dict with ids as strings.

    Args:
        items: (id, value) pairs.
        what: how a message calls the values, e.g. "predictions".

    Raises:
        MetricError: an id comes twice; 1 and "1" are the same id.
    """
    found: dict[str, Value] = {}
    twice = []
    for key, value in items:
        name = str(key)
        if name in found:
            twice.append(name)
        found[name] = value
    if twice:
        raise MetricError(f"{what}: image ids that come twice (1 and '1' are the same): {name_ids(twice)}")
    return found


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

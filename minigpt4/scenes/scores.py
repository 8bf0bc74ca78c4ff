"""Scores of captions of drawn scenes: do they name the right objects?

BLEU and CIDEr measure how similar two wordings are; for a drawn scene the truth is known, so a caption can also be
judged by the objects it names: a parser finds the (colour, shape) pairs in it, and two strict scores compare them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from minigpt4.common.errors import MetricError, did_you_mean
from minigpt4.scenes.vocabulary import COLOURS, COUNT_WORDS, SHAPES, SIZES, Scene


def _by_word(vocabulary: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    return {word: name for name, words in vocabulary.items() for word in words}


_COLOUR_OF = _by_word(COLOURS)
_SHAPE_OF = _by_word(SHAPES) | {
    ("crosses" if word == "cross" else "boxes" if word == "box" else word + "s"): name
    for word, name in _by_word(SHAPES).items()
}
_COLOUR_WORDS = "|".join(sorted(_COLOUR_OF, key=len, reverse=True))
_SHAPE_WORDS = "|".join(sorted(_SHAPE_OF, key=len, reverse=True))
_SIZE_WORDS = "|".join(word for words in SIZES.values() for word in words)
_OBJECT = re.compile(
    rf"(?:\b(?P<count>{'|'.join(COUNT_WORDS)})\s+)?(?:\b(?:{_SIZE_WORDS})\s+)?"
    rf"(?:\b(?P<colour>{_COLOUR_WORDS})\s+(?P<shape>{_SHAPE_WORDS})\b"
    rf"|\b(?P<shape_first>{_SHAPE_WORDS})\s+(?:painted\s+|coloured\s+|colored\s+|in\s+)"
    rf"(?P<colour_last>{_COLOUR_WORDS})\b)",
    re.IGNORECASE,
)


def named_objects(caption: str) -> list[tuple[str, str]]:
    """The (colour, shape) pairs that a caption names, in its order, by their names in the vocabulary.

    "a big scarlet disc and two pink boxes" gives a red circle and twice a pink square, "a ring in blue" a blue ring.
    A colour or a shape alone names nothing.
    """
    pairs: list[tuple[str, str]] = []
    for match in _OBJECT.finditer(caption):
        colour = match["colour"] or match["colour_last"]
        shape = match["shape"] or match["shape_first"]
        pair = (_COLOUR_OF[colour.lower()], _SHAPE_OF[shape.lower()])
        pairs.extend([pair] * COUNT_WORDS.get((match["count"] or "").lower(), 1))
    return pairs


def names_largest(caption: str, scene: Scene) -> bool:
    """Whether the caption names the largest object's colour and shape, and no more objects than there are.

    Because of the second condition a caption that lists everything is wrong. For an empty scene the caption is right
    if it names nothing.
    """
    pairs = named_objects(caption)
    if not scene.objects:
        return not pairs
    largest = scene.objects[0]
    return (largest.colour, largest.shape) in pairs and len(pairs) <= len(scene.objects)


def names_all(caption: str, scene: Scene) -> bool:
    """Whether the caption names exactly the scene's objects: equal multisets of (colour, shape)."""
    return Counter(named_objects(caption)) == Counter((o.colour, o.shape) for o in scene.objects)


def _match(predictions: Mapping[str, str], scenes: Mapping[str, Scene]) -> list[tuple[str, Scene]]:
    """Every prediction with its scene; a key is an image's file name, with or without its suffix."""
    if not predictions:
        raise MetricError("no predictions to score: the mapping from image to caption is empty")
    by_stem = {Path(name).stem: scene for name, scene in scenes.items()}
    pairs = []
    for key, caption in predictions.items():
        scene = scenes.get(str(key)) or by_stem.get(Path(str(key)).stem)
        if scene is None:
            hint = did_you_mean(str(key), list(scenes)[:1000])
            raise MetricError(f"no scene for prediction '{key}' among {len(scenes)}: {hint}")
        pairs.append((caption, scene))
    return pairs


def object_accuracy(predictions: Mapping[str, str], scenes: Mapping[str, Scene]) -> float:
    """Share of captions that name the right colour and shape of the largest object (see `names_largest`).

    Args:
        predictions: one caption by image file name, with or without its suffix.
        scenes: the ground truth by image file name; more scenes than predictions are fine.

    Raises:
        MetricError: There is no prediction, or no scene for one.
    """
    pairs = _match(predictions, scenes)
    return sum(names_largest(caption, scene) for caption, scene in pairs) / len(pairs)


def all_objects_accuracy(predictions: Mapping[str, str], scenes: Mapping[str, Scene]) -> float:
    """Share of captions that name every object and nothing else (see `names_all`); as `object_accuracy`."""
    pairs = _match(predictions, scenes)
    return sum(names_all(caption, scene) for caption, scene in pairs) / len(pairs)

"""Correction without a language model: removes repeats, fragments, and what an image's descriptions do not agree on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minigpt4.common.registry import refiners
from minigpt4.common.schema import RefineConfig
from minigpt4.curate.refiners.base import Correction, Refiner
from minigpt4.evaluation.fluency import is_fragment, named_things, sentences, words

Support = Mapping[frozenset[str], float]
"""Thing -> share of the image's descriptions that name it."""
DROP_COST = 0.1
"""Score that each removed item costs: a description that was right from the beginning reads better."""
_BETWEEN_ITEMS = re.compile(r"(,?\s+(?:together with|and|with|while|which is)\s+|[,;:]\s+)")


@refiners.register("local")
class LocalRefiner(Refiner):
    """Compares an image's descriptions, and sees nothing else.

    A thing is what `fluency.named_things` finds; its support is the share of the descriptions that name it. From each
    description, items that name a thing again or a thing with too little support are removed, then sentences that are
    fragments or add nothing. The description with the best support is the correction.

    Args:
        settings: `min_support` is the least support of a thing that stays.
    """

    def __init__(self, settings: RefineConfig, **_: Any) -> None:
        self.min_support = settings.min_support

    def refine(self, sample: str, texts: Sequence[str]) -> Correction:
        """The cleaned description with the best support; the main one unchanged if nothing of any can be used."""
        votes = Counter(thing for text in texts for thing in set(named_things(text)))
        support = {thing: number / len(texts) for thing, number in votes.items()}
        cleaned = [clean(text, support, self.min_support) for text in texts]
        best = max(cleaned, key=lambda item: item.score)  # of equals the first, the main description
        if not best.text:
            return Correction(texts[0], agreement=0.0)
        agreement = sum(support[thing] for thing in best.named) / len(best.named) if best.named else 0.0
        return Correction(best.text, agreement=agreement)


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A cleaned description.

    Attributes:
        text: remaining text; empty: nothing of it can be used.
        named: things that it names.
        score: sum over these things of their support minus the share of descriptions without them, less the cost of
            removed items.
    """

    text: str
    named: tuple[frozenset[str], ...]
    score: float


def clean(text: str, support: Support, min_support: float) -> Cleaned:
    """Remove repeats, fragments and unsupported items from a description.

    Args:
        text: description.
        support: support of each thing.
        min_support: items that name a thing with less are removed.
    """
    kept: list[str] = []
    named: list[frozenset[str]] = []
    score = 0.0
    for sentence in sentences(text):
        if is_fragment(sentence) or any(words(sentence) == words(other) for other in kept):
            continue
        shorter, dropped = _without_items(sentence, support, min_support, named)
        new = [thing for thing in dict.fromkeys(named_things(shorter)) if thing not in named]
        worth = sum(2 * support.get(thing, 0.0) - 1 for thing in new)
        if kept and (not new or worth <= 0):
            continue
        kept.append(shorter)
        named += new
        score += worth - DROP_COST * dropped
    return Cleaned(" ".join(kept), tuple(named), score if kept else float("-inf"))


def _without_items(
    sentence: str, support: Support, min_support: float, named: Sequence[frozenset[str]]
) -> tuple[str, int]:
    """A sentence without repeated and unsupported items, and how many were removed; the first item stays."""
    body, end = sentence[:-1], sentence[-1]
    first, *rest = _BETWEEN_ITEMS.split(body)
    seen = {*named, *named_things(first)}
    result, dropped = first, 0
    for link, item in zip(rest[::2], rest[1::2], strict=True):
        found = named_things(item)
        if found and (found[0] in seen or support.get(found[0], 0.0) < min_support):
            dropped += 1
            continue
        if dropped and not found:
            continue  # "and to the right of it" refers to what was removed
        # A colon begins a list: its first item needs no other link.
        result += (rest[0] if result is first and rest[0].startswith(":") else link) + item
        seen.update(found)
    return result + end, dropped

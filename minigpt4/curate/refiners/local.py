"""Correction without a language model: repeats and fragments go, and what a picture's descriptions do not agree on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from minigpt4.common.registry import refiners
from minigpt4.common.schema import Config
from minigpt4.curate.refiners.base import Correction, Refiner
from minigpt4.evaluation.fluency import is_fragment, sentences, things, words

_BETWEEN_ITEMS = re.compile(r"(,?\s+(?:together with|and|with|while|which is)\s+|[,;:]\s+)")
Support = Mapping[frozenset[str], float]
DROP_COST = 0.1
"""What an item taken out costs a description: one that was right from the beginning reads better."""


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A description after cleaning.

    Attributes:
        text: What is left of it.
        named: The things it names.
        score: Of the things named, how many more the picture's descriptions confirm than contradict.
    """

    text: str
    named: tuple[frozenset[str], ...]
    score: float


@refiners.register("local")
class LocalRefiner(Refiner):
    """Sees the descriptions and nothing else.

    A thing is what `fluency.things` finds. Its support is the share of the picture's descriptions that name it. From
    each description, items that name a thing again or name one with too little support are taken out, then sentences
    that are fragments or add nothing. The one that is best confirmed stands.
    """

    def __init__(self, cfg: Config) -> None:
        self.min_support = cfg.curation.refine.min_support

    def refine(self, sample: str, texts: Sequence[str]) -> Correction:
        """The best confirmed of the cleaned descriptions; one without anything usable stays as it is."""
        votes = Counter(thing for text in texts for thing in set(things(text)))
        support = {thing: number / len(texts) for thing, number in votes.items()}
        cleaned = [clean(text, support, self.min_support) for text in texts]
        best = max(cleaned, key=lambda item: item.score)  # of equals the first, the main description
        if not best.text:
            return Correction(texts[0], agreement=0.0)
        agreement = sum(support[thing] for thing in best.named) / len(best.named) if best.named else 0.0
        return Correction(best.text, agreement=agreement)


def clean(text: str, support: Support, min_support: float) -> Cleaned:
    """Take repeats, fragments and what is not confirmed out of a description.

    Args:
        text: The description.
        support: Thing -> share of descriptions that name it.
        min_support: Items that name a thing with less are taken out.
    """
    kept: list[str] = []
    named: list[frozenset[str]] = []
    score = 0.0
    for sentence in sentences(text):
        if is_fragment(sentence) or any(words(sentence) == words(other) for other in kept):
            continue
        shorter, dropped = _without_items(sentence, support, min_support, named)
        new = [thing for thing in dict.fromkeys(things(shorter)) if thing not in named]
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
    """A sentence without the items that repeat or are not confirmed, and how many these were; the first item stays."""
    body, end = sentence[:-1], sentence[-1]
    first, *rest = _BETWEEN_ITEMS.split(body)
    seen = {*named, *things(first)}
    result, dropped = first, 0
    for link, item in zip(rest[::2], rest[1::2], strict=True):
        found = things(item)
        if found and (found[0] in seen or support.get(found[0], 0.0) < min_support):
            dropped += 1
            continue
        if dropped and not found:
            continue  # "and to the right of it" hangs on what was taken out
        # A colon leads into a list: whatever comes first after it needs no other link.
        result += (rest[0] if result is first and rest[0].startswith(":") else link) + item
        seen.update(found)
    return result + end, dropped

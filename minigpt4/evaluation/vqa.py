"""Answers to questions beside those that people gave: VQA's normalisation and accuracy, exact match, yes or no."""

from __future__ import annotations

import re
from collections.abc import Sequence

AGREEING = 3
"""Annotators who must have given an answer for it to score 1."""
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBER_COMMA = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_DIGITS = {
    word: str(number)
    for number, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    )
} | {"none": "0"}
_ARTICLES = frozenset({"a", "an", "the"})
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _contractions() -> dict[str, str]:
    """Contraction that lacks one of its apostrophes -> the contraction."""
    found = {"somebody'd": "somebodyd"}  # as in the official table
    for word in _CONTRACTED.split():
        for place in (match.start() for match in re.finditer("'", word)):
            found[word[:place] + word[place + 1 :]] = word
    return found


_CONTRACTIONS = _contractions()


def normalise_answer(text: str) -> str:
    """An answer as VQA's official evaluation compares it.

    Punctuation becomes a space, or nothing where a space is beside it or where the text has a number such as "1,000"; a
    full stop stays in front of a digit only; letters become small, number words digits; articles go, and apostrophes
    that contractions lack are added. Source: `vqaEvaluation/vqaEval.py` of GT-Vision-Lab/VQA.
    """
    text = original = text.replace("\n", " ").replace("\t", " ").strip()
    glued = _NUMBER_COMMA.search(original) is not None
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in original or f" {mark}" in original
        text = text.replace(mark, "" if glued or beside_space else " ")
    words = (_DIGITS.get(word, word) for word in _FULL_STOP.sub("", text).lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def soft_accuracy(answer: str, given: Sequence[str]) -> float:
    """VQA's accuracy of an answer: the mean, over the people asked, of min(1, matches among the others / 3).

    Unlike the official script, which only removes punctuation from annotations, and only where they differ, this
    normalises both sides; the two agree where the annotations are normalised already.

    Args:
        answer: the answer.
        given: what people answered, ten of them in VQAv2; one or two count as `exact_match` of any, since three could
            never agree.
    """
    said = normalise_answer(answer)
    matches = sum(normalise_answer(other) == said for other in given)
    if len(given) < AGREEING:
        return float(matches > 0)
    # Leaving out a matching annotator leaves one match fewer.
    ours, others = min(1.0, (matches - 1) / AGREEING), min(1.0, matches / AGREEING)
    return (matches * ours + (len(given) - matches) * others) / len(given)


def exact_match(answer: str, given: Sequence[str]) -> float:
    """1 where the answer is one of those given, but for case, spaces and a full stop at the end; else 0."""
    said = _plain(answer)
    return float(any(_plain(other) == said for other in given))


def says_yes(answer: str) -> bool:
    """Whether an answer counts as yes for POPE: unless its first sentence has "no" or "not".

    Source: `evaluate.py` of AoiDragon/POPE, which also counts what is neither as yes.
    """
    return not {"no", "not"} & set(_first_words(answer))


def is_yes_or_no(answer: str) -> bool:
    """Whether an answer's first sentence says yes, no or not."""
    return not {"yes", "no", "not"}.isdisjoint(_first_words(answer))


def _first_words(answer: str) -> list[str]:
    return re.findall(r"[\w']+", answer.split(".")[0].lower())


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()

"""How well formed a text is, whatever it says: repetition, fragments, foreign words, strange characters.

Stage 1 of MiniGPT-4 leaves a model that repeats itself and breaks off (arXiv:2304.10592, section 3); these are the
measures of that, used to filter stage 2's data and to compare a model before and after it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

NGRAM = 3
"""Words of which a repetition consists."""
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_POINT = r"(?<=\d)\.(?=\d)"
"""Between the digits of a number it ends no sentence."""
_SENTENCE = re.compile(rf"(?:[^.!?]|{_POINT})*(?!{_POINT})[.!?]+[\"'”’)]*|(?:[^.!?]|{_POINT})+$")
_STRANGE = re.compile(r"[^\w\s.,;:!?'\"“”‘’()/%&$€£+=°–—-]|_|\ufffd")
_RUN = re.compile(r"(\S)\1{4,}")


def words(text: str) -> list[str]:
    """The words of a text, in small letters, with straight apostrophes."""
    return [word.lower().replace("’", "'") for word in _WORD.findall(text)]


COMMON = frozenset(
    words(
        """
        a about above after all also an and any are as at back be behind below between both bottom but by can down each
        few for from front has have he her his in into is it its left many more near next no not of off on one only
        other out over right she side some that the their them there these they this three through to top two under up
        very was were what which while who with you
        """
    )
)
"""English words so common that no paragraph does without them."""


def sentences(text: str) -> list[str]:
    """The sentences of a text, each with its full stop; what follows the last one too."""
    found = (match.strip() for match in _SENTENCE.findall(" ".join(text.split())))
    return [sentence for sentence in found if sentence]


def repetition(text: str) -> float:
    """Share of word trigrams that occurred before in the text; 0 where there are none."""
    said = words(text)
    grams = list(zip(*(said[start:] for start in range(NGRAM)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def is_fragment(sentence: str) -> bool:
    """Whether a sentence has no capital at its beginning, no full stop at its end, or fewer than three words."""
    body = sentence.lstrip("\"'“‘(")
    whole = body[:1].isupper() or body[:1].isdigit()
    return not whole or sentence.rstrip("\"'”’)")[-1:] not in (".", "!", "?") or len(words(sentence)) < NGRAM


def fragments(text: str) -> float:
    """Share of sentences that are fragments; 1 for an empty text."""
    found = sentences(text)
    return sum(map(is_fragment, found)) / len(found) if found else 1.0


def english(text: str) -> float:
    """Share of words that are among the commonest of English; 0 where there are none."""
    said = words(text)
    return sum(word in COMMON for word in said) / len(said) if said else 0.0


def strange(text: str) -> float:
    """Share of characters that an English sentence does not need, or that repeat five times and more."""
    odd = len(_STRANGE.findall(text)) + sum(len(match.group()) for match in _RUN.finditer(text))
    return min(1.0, odd / len(text)) if text else 0.0


def things(text: str) -> list[frozenset[str]]:
    """What a text names, in order: the last two words of every stretch of at least two words that are not common ones.

    "A large red circle above a blue star" names {red, circle} and {blue, star}, whatever stands before these words.
    """
    found, run = [], list[str]()
    for word in [*words(text), "and"]:
        if word not in COMMON:
            run.append(word)
            continue
        if len(set(run[-2:])) == 2:
            found.append(frozenset(run[-2:]))
        run = []
    return found


def fluency_scores(texts: Iterable[str]) -> dict[str, float]:
    """The shares of answers that name a thing twice, and of those that hold a fragment."""
    listed = list(texts)
    number = max(1, len(listed))
    return {
        "repetition": sum(len(things(text)) > len(set(things(text))) for text in listed) / number,
        "fragments": sum(fragments(text) > 0 for text in listed) / number,
    }

"""How well formed a text is, whatever its content: repetition, fragments, foreign words, odd characters.

After stage 1 of MiniGPT-4, the model repeats itself and stops in mid-sentence (arXiv:2304.10592, section 3). These
measures filter the data of stage 2, and compare a model before and after it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

NGRAM = 3
"""Words of a repetition, and of the shortest sentence."""
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_POINT = r"(?<=\d)\.(?=\d)"
"""A full stop between the digits of a number ends no sentence."""
_SENTENCE = re.compile(rf"(?:[^.!?]|{_POINT})*(?!{_POINT})[.!?]+[\"'”’)]*|(?:[^.!?]|{_POINT})+$")
_ODD = re.compile(r"[^\w\s.,;:!?'\"“”‘’()/%&$€£+=°–—-]|_|\ufffd")
_RUN = re.compile(r"(\S)\1{4,}")
COMMON_WORDS = frozenset(
    """
    a about above after all also an and any are as at back be behind below between both bottom but by can down each few
    for from front has have he her his in into is it its left many more near next no not of off on one only other out
    over right she side some that the their them there these they this three through to top two under up very was were
    what which while who with you
    """.split()  # noqa: SIM905 - easier to read than a list
)
"""English words so common that every paragraph has some."""


def words(text: str) -> list[str]:
    """The words of a text, in lower case, with straight apostrophes."""
    return [word.lower().replace("’", "'") for word in _WORD.findall(text)]


def sentences(text: str) -> list[str]:
    """The sentences of a text, each with its full stop; the last one may lack it."""
    found = (match.strip() for match in _SENTENCE.findall(" ".join(text.split())))
    return [sentence for sentence in found if sentence]


def repetition(text: str) -> float:
    """Share of word trigrams that occurred before in the text; 0 where there is none."""
    found = words(text)
    grams = list(zip(*(found[start:] for start in range(NGRAM)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def is_fragment(sentence: str) -> bool:
    """Whether a sentence has no capital at its beginning, no full stop at its end, or fewer than three words."""
    body = sentence.lstrip("\"'“‘(")
    begins = body[:1].isupper() or body[:1].isdigit()
    return not begins or sentence.rstrip("\"'”’)")[-1:] not in (".", "!", "?") or len(words(sentence)) < NGRAM


def fragments(text: str) -> float:
    """Share of sentences that are fragments; 1 for an empty text."""
    found = sentences(text)
    return sum(map(is_fragment, found)) / len(found) if found else 1.0


def common_word_ratio(text: str) -> float:
    """Share of words that are among the most common of English; 0 where there are none."""
    found = words(text)
    return sum(word in COMMON_WORDS for word in found) / len(found) if found else 0.0


def odd_character_ratio(text: str) -> float:
    """Share of characters that English sentences do not need, or that repeat five times or more."""
    odd = len(_ODD.findall(text)) + sum(len(match.group()) for match in _RUN.finditer(text))
    return min(1.0, odd / len(text)) if text else 0.0


def named_things(text: str) -> list[frozenset[str]]:
    """The things a text names, in order: the last two words of every run of at least two words that are not common.

    "A large red circle above a blue star" names {red, circle} and {blue, star}: earlier words of a run do not count.
    """
    found, run = [], list[str]()
    for word in [*words(text), "and"]:
        if word not in COMMON_WORDS:
            run.append(word)
            continue
        if len(set(run[-2:])) == 2:
            found.append(frozenset(run[-2:]))
        run = []
    return found


def fluency_scores(texts: Iterable[str]) -> dict[str, float]:
    """Share of answers that name a thing twice, and share of answers with a fragment."""
    listed = list(texts)
    number = max(1, len(listed))
    return {
        "repetition": sum(len(named_things(text)) > len(set(named_things(text))) for text in listed) / number,
        "fragments": sum(fragments(text) > 0 for text in listed) / number,
    }

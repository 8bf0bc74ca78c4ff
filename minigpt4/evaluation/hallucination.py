"""Objects that answers name and images do not show: CHAIR of captions, and the questions of POPE."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from minigpt4.common.errors import DataError
from minigpt4.common.files import asset, read_lines

POPE_KINDS = ("random", "popular", "adversarial")
"""How POPE chooses the objects that an image does not show (arXiv:2305.10355, section 5.1)."""
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


@dataclass(frozen=True)
class Vocabulary:
    """The words by which texts name objects.

    Attributes:
        phrases: words of a phrase, in lower case -> the object that it names; None: a phrase such as "train station",
            which names none of the objects in it.
    """

    phrases: Mapping[tuple[str, ...], str | None]

    def mentions(self, text: str) -> list[str]:
        """The objects that a text names, in order, as often as it does; of overlapping phrases the longest counts."""
        words = [word.lower().replace("’", "'").removesuffix("'s") for word in _WORD.findall(text)]
        longest = max(map(len, self.phrases), default=0)
        found: list[str] = []
        place = 0
        while place < len(words):
            sizes = (size for size in range(longest, 0, -1) if tuple(words[place : place + size]) in self.phrases)
            size = next(sizes, 0)
            name = self.phrases[tuple(words[place : place + size])] if size else None
            if name is not None:
                found.append(name)
            place += size or 1
        return found


def read_vocabulary(names: Iterable[str], path: str | Path | None = None) -> Vocabulary:
    """The vocabulary of some objects: their names, the further words of a file, and the plurals of both.

    Args:
        names: the objects.
        path: lines such as `couch: sofa, settee`; objects without a line have their names only. A line that begins with
            `-` lists phrases that name none. None: the shipped file, with COCO's objects.

    Raises:
        DataError: the file cannot be read, or a line has another form.
    """
    source = Path(path or asset("object_words.txt"))
    known = {_key(name): name for name in names}
    phrases: dict[tuple[str, ...], str | None] = {}
    nothing: list[str] = []
    for number, line in read_lines(source):
        head, colon, rest = line.partition(":")
        if line.startswith("#"):
            continue
        if line.startswith("-"):
            nothing += line[1:].split(",")
        elif not colon:
            raise DataError(f"{source}, line {number}: 'name: further words, ...' is expected, found {line[:80]!r}")
        elif _key(head) in known:
            name = known[_key(head)]
            phrases |= {form: name for phrase in rest.split(",") for form in _forms(phrase)}
    phrases |= {form: name for name in known.values() for form in _forms(name)}
    return Vocabulary({form: None for phrase in nothing for form in _forms(phrase)} | phrases)


def chair(captions: Iterable[tuple[Sequence[str], Collection[str]]]) -> dict[str, float]:
    """CHAIR of captions (arXiv:1809.02156): how often they name what their images do not show.

    Args:
        captions: of each, the objects that it names, as often as it does, and those that its image shows.

    Returns:
        CHAIR_i, the share of mentions that are wrong; CHAIR_s, the share of captions with a wrong one; and
        object_recall, the share of the images' objects that are named, without which silence would be best. 0 where
        there is nothing to take a share of.
    """
    mentions = wrong = wrong_captions = number = named = shown = 0
    for said, true in captions:
        missing = sum(name not in true for name in said)
        number += 1
        mentions += len(said)
        wrong += missing
        wrong_captions += missing > 0
        named += len(set(said) & set(true))
        shown += len(set(true))
    return {
        "CHAIR_i": wrong / mentions if mentions else 0.0,
        "CHAIR_s": wrong_captions / number if number else 0.0,
        "object_recall": named / shown if shown else 0.0,
    }


def pope_questions(
    objects: Mapping[str, Collection[str]], each: int = 3, seed: int = 42, images: int | None = None
) -> list[dict[str, Any]]:
    """Questions about objects that images show and, as many, about objects that they do not (POPE, arXiv:2305.10355).

    Objects that an image does not show are random ones, those that most images show (popular), or those that occur most
    often beside the objects of the image (adversarial). The questions about shown objects are the same each time.

    Args:
        objects: image file -> all the objects in it; images without an object have no questions.
        each: at most this many questions of each kind about objects in the image, and as many about objects not in it.
        seed: names the choice.
        images: number of images to ask about, drawn at random from those with objects; None: all. Which objects are
            popular depends on all images.

    Returns:
        Rows of the reader jsonl: id, image, question, answer and kind.
    """
    shown = {image: sorted(set(names)) for image, names in objects.items()}
    images_of = Counter(name for names in shown.values() for name in names)
    together: dict[str, Counter[str]] = {name: Counter() for name in images_of}
    for names in shown.values():
        for name in names:
            together[name].update(other for other in names if other != name)
    asked_about = [image for image, names in shown.items() if names]
    if images is not None and images < len(asked_about):
        chosen_images = set(Random(f"{seed}-pope").sample(asked_about, images))
        asked_about = [image for image in asked_about if image in chosen_images]
    rows = []
    for image in asked_about:
        names = shown[image]
        absent = sorted(images_of.keys() - set(names))
        count = min(each, len(names), len(absent))
        generator = Random(f"{seed}-pope-{image}")
        asked = generator.sample(names, count)
        beside = sum((together[name] for name in names), Counter[str]())
        often = {name: (beside[name], images_of[name]) for name in absent}
        chosen = {
            "random": generator.sample(absent, count),
            "popular": _most(absent, images_of, count),
            "adversarial": _most(absent, often, count),
        }
        for kind in POPE_KINDS:
            pairs = [*((name, "yes") for name in asked), *((name, "no") for name in chosen[kind])]
            rows += [
                {
                    "id": f"{image}-{kind}-{number}",
                    "image": image,
                    "question": f"Is there {_article(name)} {name} in the image?",
                    "answer": answer,
                    "kind": kind,
                }
                for number, (name, answer) in enumerate(pairs, 1)
            ]
    return rows


def _most(names: Sequence[str], rank: Mapping[str, Any], count: int) -> list[str]:
    """The names of highest rank; of equals, the first in the order given."""
    return sorted(names, key=rank.__getitem__, reverse=True)[:count]


def _article(name: str) -> str:
    return "an" if name[:1].lower() in "aeiou" else "a"


def _key(name: str) -> str:
    return " ".join(name.casefold().split())


def _forms(phrase: str) -> list[tuple[str, ...]]:
    """The words of a phrase, and those of its plural; nothing for an empty one."""
    *first, last = phrase.lower().split() or [""]
    if not last:
        return []
    plurals = [last + "s", last + "es"]
    if last.endswith("y"):
        plurals.append(last[:-1] + "ies")
    return [(*first, word) for word in [last, *plurals]]

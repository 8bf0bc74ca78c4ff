"""The same image in several splits, under one name, as a copy, or as a near copy: scores on it would measure memory."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from minigpt4.processors.image import Pixels

WIDTH, HEIGHT = 9, 8
"""Sides of a thumbnail: 8 differences in each of 8 rows are the 64 bits of the hash."""
MAX_LEVELS = 12
"""Largest difference of two near copies' thumbnails, in levels of 255; without it, drawings on an empty ground, whose
hashes are mostly zeros, would all be alike."""
Splits = Mapping[str, set[str | None]]
"""Splits of each image, by name."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What identifies an image.

    Attributes:
        content: SHA-256 of the file.
        looks: dHash: whether each cell of the thumbnail is brighter than the one to its left, 64 bits
            (hackerfactor.com/blog/index.php?/archives/529-Kind-of-Like-That.html).
        thumbnail: WIDTH x HEIGHT cells of RGB.
    """

    content: bytes
    looks: int
    thumbnail: bytes


def fingerprint(data: bytes, pixels: Pixels) -> Fingerprint:
    """The fingerprint of an image.

    Args:
        data: content of the file.
        pixels: the image, (H, W, 3) uint8.
    """
    small = Image.fromarray(pixels).resize((WIDTH, HEIGHT), Image.Resampling.BOX)
    grey = np.asarray(small.convert("L"))
    bits = np.packbits(grey[:, 1:] > grey[:, :-1])
    return Fingerprint(hashlib.sha256(data).digest(), int.from_bytes(bits.tobytes(), "big"), small.tobytes())


def leaks(splits: Splits, prints: Mapping[str, Fingerprint]) -> Iterator[str]:
    """A warning, with a count and an example, for each way in which images are in several splits.

    Args:
        splits: splits of every image.
        prints: fingerprints of the images that could be read.
    """
    several = [name for name, found in splits.items() if len(found) > 1]
    if several:
        yield f"{len(several):,} images are in more than one split, such as {several[0]}"
    copies = list(_pairs(splits, prints, _copies))
    if copies:
        yield f"{len(copies):,} images are copies of files of another split under other names, such as {copies[0]}"
    near = list(_pairs(splits, prints, _near_copies))
    if near:
        yield f"{len(near):,} images look like images of another split, such as {near[0]}; compare them"


Find = Callable[[list[str], list[str], Mapping[str, Fingerprint]], Iterable[tuple[str, str]]]
"""(names, names of other splits, fingerprints) -> (name, name of the image that it resembles)."""


def _pairs(splits: Splits, prints: Mapping[str, Fingerprint], find: Find) -> Iterator[str]:
    """ "a.jpg (val) and b.jpg (train)" for each image of a split that resembles one of a larger split."""
    members: dict[str | None, list[str]] = defaultdict(list)
    for name in prints:
        for split in splits[name]:
            members[split].append(name)
    larger: list[str] = []
    for split, _ in Counter({split: len(names) for split, names in members.items()}).most_common():
        for name, other in find(members[split], larger, prints):
            yield f"{name} ({split}) and {other} ({' and '.join(sorted(map(str, splits[other])))})"
        larger += members[split]


def _copies(names: list[str], others: list[str], prints: Mapping[str, Fingerprint]) -> Iterator[tuple[str, str]]:
    known: dict[bytes, list[str]] = defaultdict(list)
    for other in others:
        known[prints[other].content].append(other)
    for name in names:
        found = [other for other in known.get(prints[name].content, ()) if other != name]
        if found:
            yield name, found[0]


def _near_copies(names: list[str], others: list[str], prints: Mapping[str, Fingerprint]) -> Iterator[tuple[str, str]]:
    looks = np.array([prints[other].looks for other in others], dtype=np.uint64)
    one = np.uint64(1)
    for name in names:
        differing = looks ^ np.uint64(prints[name].looks)
        differing &= differing - one  # clears the lowest bit that differs
        differing &= differing - one
        for index in np.flatnonzero(differing == 0):
            other = others[index]
            if other != name and _is_near(prints[name], prints[other]):
                yield name, other
                break


def _is_near(one: Fingerprint, other: Fingerprint) -> bool:
    """Whether two images whose hashes differ in at most two bits have nearly the same thumbnails, and are no copies."""
    if one.content == other.content:
        return False
    levels = (np.frombuffer(image.thumbnail, dtype=np.uint8).astype(np.int16) for image in (one, other))
    return bool(np.abs(next(levels) - next(levels)).max() <= MAX_LEVELS)

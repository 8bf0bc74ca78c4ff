"""The same image in training and evaluation, under one name, as a copy, or as a near copy: scores on it measure memory.

A checkpoint's metadata records what it was trained on: of each dataset the splits, a hash of the annotations or
shards, and the ids and file names of the images where they are not too many. Training hashes no image. The evaluation
opens the images that it evaluates and those that the record lists, and compares their fingerprints.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from minigpt4.common.errors import DataError, counted
from minigpt4.common.schema import DatasetConfig
from minigpt4.datasets.builders import SHARDS, annotations_paths
from minigpt4.processors.image import decode_pixels, image_bytes

if TYPE_CHECKING:
    from minigpt4.datasets.instruction import InstructionDataset

logger = logging.getLogger(__name__)
METADATA_KEY = "trained_on"
"""Entry of a checkpoint's metadata."""
MAX_LISTED = 200_000
"""Images of a dataset up to which a record lists them (about 2 MB a checkpoint); larger ones are known by the hash of
their annotations or shards."""
MAX_RECORD = 2**28
"""Bytes that the list of a record may unpack to."""
THREADS = 4
"""Threads that decode images: Pillow does so without holding Python's lock."""
EXAMPLES = 3
"""Leaks that a result names."""
WIDTH, HEIGHT = 9, 8
"""Sides of a thumbnail: 8 differences in each of 8 rows are the 64 bits of the hash."""
MAX_LEVELS = 12
"""Largest difference of two near copies' thumbnails, in levels of 255; without it, drawings on an empty ground, whose
hashes are mostly zeros, would all be alike."""
Datasets = Mapping[str, "InstructionDataset"]
Splits = Mapping[str, set[str | None]]
"""Splits of each image, by name."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What identifies an image.

    Attributes:
        content: SHA-256 of the file.
        pixels: SHA-256 of its decoded pixels and their size.
        looks: dHash: whether each cell of the thumbnail is brighter (by three levels, so that noise sets no bit of an
            even ground) than the one to its left, 64 bits
            (hackerfactor.com/blog/index.php?/archives/529-Kind-of-Like-That.html).
        thumbnail: WIDTH x HEIGHT cells of RGB.
    """

    content: bytes
    pixels: bytes
    looks: int
    thumbnail: bytes


def fingerprint(path: Path) -> Fingerprint:
    """The fingerprint of an image file.

    Raises:
        DataError: As for `decode_pixels`.
    """
    data = image_bytes(path, str(path))
    pixels = np.ascontiguousarray(decode_pixels(data, str(path)))
    # Of Pillow's filters, the one whose thumbnails differ least where an image has been scaled.
    small = Image.fromarray(pixels).resize((WIDTH, HEIGHT), Image.Resampling.HAMMING)
    grey = np.asarray(small.convert("L"))
    bits = np.packbits(grey[:, 1:] > grey[:, :-1].astype(np.int16) + 2)
    seen = hashlib.sha256(repr(pixels.shape).encode())
    seen.update(pixels.data)
    looks = int.from_bytes(bits.tobytes(), "big")
    return Fingerprint(hashlib.sha256(data).digest(), seen.digest(), looks, small.tobytes())


def fingerprints(paths: Iterable[Path]) -> Iterator[tuple[Path, Fingerprint | DataError]]:
    """Each path with its image's fingerprint, or why the image cannot be used; several are opened at a time."""

    def read(path: Path) -> tuple[Path, Fingerprint | DataError]:
        try:
            return path, fingerprint(path)
        except DataError as error:
            return path, error

    with ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(read, paths)


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """The images of some splits of a dataset.

    Attributes:
        name: key of the dataset in the configuration.
        splits: its splits.
        count: number of images; of samples in shards.
        source: hash of the annotations, or of what identifies shards; empty for a folder of images.
        folder: folder that file names start at, as configured.
        listed: (image id, file name) of each record; None: there are too many, or they are in shards.
    """

    name: str
    splits: tuple[str, ...]
    count: int
    source: str
    folder: str
    listed: tuple[tuple[str, str], ...] | None

    @classmethod
    def of(cls, name: str, cfg: DatasetConfig, dataset: InstructionDataset, splits: Sequence[str]) -> ImageSet:
        """The images of a dataset as `build_dataset` returned it for these splits."""
        if cfg.builder == SHARDS:
            source = hashlib.sha256(dataset.identity().encode()).hexdigest()
            return cls(name=name, splits=tuple(splits), count=len(dataset), source=source, folder="", listed=None)
        files = [path for path in annotations_paths(name, cfg) if path.is_file()]
        digest = hashlib.sha256()
        for path in files:
            with path.open("rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
        count = len({image for record in dataset.records for image in record.images})
        listed = None
        if len(dataset) <= MAX_LISTED:
            listed = tuple((record.image_id, image) for record in dataset.records for image in record.images)
        return cls(
            name=name,
            splits=tuple(splits),
            count=count,
            source=digest.hexdigest() if files else "",
            folder=str(dataset.images),
            listed=listed,
        )

    def paths(self) -> dict[Path, str]:
        """The absolute path of each listed image -> its file name."""
        folder = Path(self.folder).resolve()
        return {folder / image: image for _, image in self.listed or ()}

    def is_of_dataset(self, other: ImageSet) -> bool:
        """Whether both are parts of one dataset, so that equal ids mean the same image."""
        same_folder = bool(self.folder) and Path(self.folder).resolve() == Path(other.folder).resolve()
        return self.name == other.name or (self.source != "" and self.source == other.source) or same_folder


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """What a checkpoint was trained on, the checkpoints that it started from included.

    Attributes:
        sets: the images.
        complete: whether each of those earlier checkpoints has a record too.
        validated: images of the validation.
        validated_and_trained: how many of them were trained on as well, which makes the choice of the best epoch
            worthless.
    """

    sets: tuple[ImageSet, ...]
    complete: bool = True
    validated: int = 0
    validated_and_trained: int = 0

    def to_metadata(self) -> str:
        """As text for a checkpoint's metadata."""
        return json.dumps(vars(self) | {"sets": [vars(item) | {"listed": _packed(item)} for item in self.sets]})

    @classmethod
    def from_metadata(cls, text: str | None, checkpoint: str | Path) -> TrainingRecord | None:
        """The record that `to_metadata` wrote; None: there is none, or it is damaged, which is warned of.

        Args:
            text: entry of the metadata.
            checkpoint: name of the checkpoint, for the warning.
        """
        if text is None:
            return None
        try:
            values = json.loads(text)
            sets = tuple(
                ImageSet(**item | {"splits": tuple(item["splits"]), "listed": _unpacked(item["listed"])})
                for item in values["sets"]
            )
            record = cls(**values | {"sets": sets})
            numbers = [record.complete, record.validated, record.validated_and_trained, *(item.count for item in sets)]
            texts = [text for item in sets for text in (item.name, item.source, item.folder, *item.splits)]
            if not all(isinstance(value, int) for value in numbers) or "\0" in "".join(texts):
                raise TypeError("a value of another kind")
        except (ValueError, TypeError, KeyError, zlib.error, RecursionError):
            logger.warning("%s: the record of what it was trained on is damaged and not used", checkpoint)
            return None
        return record

    def after(self, earlier: TrainingRecord | None) -> TrainingRecord:
        """This record for a run that starts from a checkpoint with the record `earlier`; None: it has no record."""
        if earlier is None:
            return replace(self, complete=False)
        new = tuple(item for item in earlier.sets if item not in self.sets)
        return replace(self, sets=self.sets + new, complete=earlier.complete)


def training_metadata(
    configs: Mapping[str, DatasetConfig],
    train: tuple[Datasets, Sequence[str]],
    validation: tuple[Datasets, Sequence[str]],
    start: str | Path | None,
    *,
    resumed: bool,
) -> dict[str, str]:
    """The entry of the checkpoints of a run that records what they are trained on; validation on it is warned of.

    Args:
        configs: section `datasets` of the configuration.
        train: datasets trained on, and their splits.
        validation: those of the validation.
        start: checkpoint that the weights come from; None: random ones.
        resumed: whether it belongs to this run, and so has this record already.

    Raises:
        CheckpointError: `start` cannot be read.
    """
    sets, held_out = (
        tuple(ImageSet.of(name, configs[name], dataset, splits) for name, dataset in datasets.items())
        for datasets, splits in (train, validation)
    )
    shared = _shared(sets, held_out)
    count = _count_images(held_out)
    if shared:
        logger.warning(
            "%s of the %s validation images are trained on, such as %s: the validation loss says nothing about new "
            "images; set run.valid_splits to a split that run.train_splits lacks",
            f"{len(shared):,}",
            f"{count:,}",
            shared[0],
        )
    record = TrainingRecord(sets=sets, validated=count, validated_and_trained=len(shared))
    if start is not None:
        from minigpt4.common.checkpoint import read_projection  # brings torch, which the data check does without

        earlier = TrainingRecord.from_metadata(read_projection(start)[1].get(METADATA_KEY), start)
        if resumed and earlier is not None:
            record = replace(record, sets=earlier.sets, complete=earlier.complete)
        elif not resumed:
            record = record.after(earlier)
    return {METADATA_KEY: record.to_metadata()}


def _shared(trained: Sequence[ImageSet], held_out: Sequence[ImageSet]) -> list[str]:
    """Names of the images that are in both; those of sets that are not listed are all in both, or none."""
    paths = {path for item in trained for path in item.paths()}
    found = {path: name for item in held_out for path, name in item.paths().items() if path in paths}
    unlisted = [
        name
        for item in held_out
        if item.listed is None
        and any(item.source == other.source and set(item.splits) & set(other.splits) for other in trained)
        for name in [item.name] * item.count
    ]
    return [*found.values(), *unlisted]


def _count_images(sets: Sequence[ImageSet]) -> int:
    """Different images of datasets that may share some, as far as they are listed."""
    unlisted = sum(item.count for item in sets if item.listed is None)
    return len({path for item in sets for path in item.paths()}) + unlisted


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaks:
    """Evaluated images that a checkpoint was trained on.

    Attributes:
        images: images found in any of the ways below.
        ids: images with the id of one trained on, in the same dataset.
        files: images whose file was trained on, under its own name or another.
        pixels: images whose pixels were trained on.
        near_copies: images that only look like one trained on: scaled, or compressed again.
        trained_images: images that the checkpoint was trained on.
        not_opened: how many of them could not be opened to compare their pixels.
        complete: whether the checkpoints that training started from say what they were trained on.
        validated_and_trained: images of the validation that were trained on.
        examples: the first images found, each with the one that it is like.
    """

    images: int
    ids: int
    files: int
    pixels: int
    near_copies: int
    trained_images: int
    not_opened: int
    complete: bool
    validated_and_trained: int
    examples: tuple[str, ...]

    @property
    def is_leak(self) -> bool:
        """Whether people must be warned."""
        return self.images > 0 or self.validated_and_trained > 0


def find_leaks(evaluated: ImageSet, record: TrainingRecord, prints: Mapping[Path, Fingerprint]) -> Leaks:
    """Compare the images of an evaluation with those that a checkpoint was trained on.

    Args:
        evaluated: the images of the evaluation, listed.
        record: what the checkpoint was trained on.
        prints: fingerprints of the images of both that could be opened.
    """
    names, trained = evaluated.paths(), {path: name for item in record.sets for path, name in item.paths().items()}
    ids: dict[str, str] = {}
    for item in record.sets:
        if item.listed is not None and evaluated.is_of_dataset(item):
            known = dict(item.listed)
            ids |= {image: known[image_id] for image_id, image in evaluated.listed or () if image_id in known}
        elif item.listed is None and item.source == evaluated.source and set(evaluated.splits) & set(item.splits):
            ids |= {image: f"all of {item.name}" for _, image in evaluated.listed or ()}
    opened = {str(path): found for path, found in prints.items()}
    mine, others = ([str(path) for path in paths if path in prints] for paths in (names, trained))
    found: dict[str, dict[str, str]] = {
        "ids": ids,
        "files": {names[path]: trained[path] for path in names if path in trained},
    }
    for kind, matches in (
        ("files", _copies(mine, others, opened)),
        ("pixels", _same_pixels(mine, others, opened)),
        ("near_copies", _near_copies(mine, others, opened)),
    ):
        found.setdefault(kind, {})
        for one, other in matches:
            found[kind].setdefault(names[Path(one)], trained[Path(other)])
    # A file that was trained on has pixels that were trained on.
    found["pixels"] = found["files"] | found["pixels"]
    for name in found["pixels"]:
        found["near_copies"].pop(name, None)
    every = {name: other for kind in ("near_copies", "pixels", "files", "ids") for name, other in found[kind].items()}
    pairs = [f"{name} and {every[name]}" if name != every[name] else name for name in names.values() if name in every]
    return Leaks(
        images=len(every),
        **{kind: len(images) for kind, images in found.items()},
        trained_images=_count_images(record.sets),
        not_opened=sum(item.count for item in record.sets if item.listed is None)
        + sum(path not in prints for path in trained),
        complete=record.complete,
        validated_and_trained=record.validated_and_trained,
        examples=tuple(pairs[:EXAMPLES]),
    )


def warnings_of_splits(splits: Splits, prints: Mapping[str, Fingerprint]) -> Iterator[str]:
    """A warning, with a count and an example, for each way in which images of one dataset are in several splits.

    Args:
        splits: splits of every image.
        prints: fingerprints of the images that could be read.
    """
    several = [name for name, found in splits.items() if len(found) > 1]
    if several:
        yield f"in more than one split: {counted(len(several), 'images')}, such as {several[0]}"
    copies = list(_pairs(splits, prints, _copies))
    if copies:
        images = counted(len(copies), "images")
        yield f"copies of files of another split under other names: {images}, such as {copies[0]}"
    same = list(_pairs(splits, prints, _same_pixels))
    if same:
        yield f"with the pixels of other files of another split: {counted(len(same), 'images')}, such as {same[0]}"
    near = list(_pairs(splits, prints, _near_copies))
    if near:
        yield f"resembling images of another split: {counted(len(near), 'images')}, such as {near[0]}; compare them"


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
    return _equal(names, others, {name: prints[name].content for name in (*names, *others)})


def _same_pixels(names: list[str], others: list[str], prints: Mapping[str, Fingerprint]) -> Iterator[tuple[str, str]]:
    """Pairs of different files with the same pixels."""
    for name, other in _equal(names, others, {name: prints[name].pixels for name in (*names, *others)}):
        if prints[name].content != prints[other].content:
            yield name, other


def _equal(names: list[str], others: list[str], hashes: Mapping[str, bytes]) -> Iterator[tuple[str, str]]:
    """Each name with the first other one of the same hash."""
    known: dict[bytes, list[str]] = defaultdict(list)
    for other in others:
        known[hashes[other]].append(other)
    for name in names:
        found = [other for other in known.get(hashes[name], ()) if other != name]
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
    """Whether two images whose hashes differ in at most two bits have nearly the same thumbnails, and other pixels."""
    if one.pixels == other.pixels:
        return False
    levels = (np.frombuffer(image.thumbnail, dtype=np.uint8).astype(np.int16) for image in (one, other))
    return bool(np.abs(next(levels) - next(levels)).max() <= MAX_LEVELS)


def _packed(images: ImageSet) -> str | None:
    """The list of a set as text."""
    if images.listed is None:
        return None
    return base64.b64encode(zlib.compress(json.dumps(images.listed).encode(), 9)).decode("ascii")


def _unpacked(text: str | None) -> tuple[tuple[str, str], ...] | None:
    if text is None:
        return None
    content = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), MAX_RECORD)
    return tuple((str(image_id), str(image)) for image_id, image in json.loads(content))

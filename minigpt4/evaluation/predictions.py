"""Predictions and references: the files they come in, saved before anything is scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from minigpt4.common.errors import DataError, MetricError, did_you_mean
from minigpt4.common.files import read_json, write_json

Value = TypeVar("Value")
_NAMED = 5
"""How many ids an error message names."""


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


@dataclass(frozen=True)
class Prediction:
    """One image's caption.

    Attributes:
        image_id: the image, as a string.
        caption: what the model said.
        filename: the picture's file name, empty where unknown.
        references: the image's reference captions, empty where unknown.
        extra: anything else, written beside the rest; keys must not repeat the names above.
    """

    image_id: str
    caption: str
    filename: str = ""
    references: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        named = {
            "image_id": self.image_id,
            "filename": self.filename,
            "caption": self.caption,
            "references": list(self.references),
        }
        return {**self.extra, **named}


@dataclass(frozen=True)
class PredictionsFile:
    """The content of a predictions file: the protocol as plain data, and the predictions."""

    protocol: dict[str, Any]
    predictions: list[Prediction]

    def captions(self) -> dict[str, str]:
        """Image id -> caption."""
        return {item.image_id: item.caption for item in self.predictions}

    def references(self) -> dict[str, list[str]]:
        """Image id -> references."""
        return {item.image_id: list(item.references) for item in self.predictions}


def merge_shards(shards: Iterable[Iterable[Prediction]], order: Sequence[object] | None = None) -> list[Prediction]:
    """The predictions of several processes as one list, which is what gets scored.

    Args:
        shards: each process's predictions.
        order: the image ids of the whole set, in the order wanted; without it, that of the shards.

    Raises:
        MetricError: an image is in two shards, or (with `order`) in none, or is not in `order`.
    """
    together = [item for shard in shards for item in shard]
    found = by_id(((item.image_id, item) for item in together), "predictions of all processes")
    if order is None:
        return together
    wanted = [str(key) for key in order]
    missing = [key for key in wanted if key not in found]
    extra = set(found) - set(wanted)
    if missing or extra:
        raise MetricError(
            f"predictions of all processes: {len(missing)} of {len(wanted)} images have none"
            f"{f' ({name_ids(missing)})' if missing else ''}, {len(extra)} are not of this set"
            f"{f' ({name_ids(sorted(extra))})' if extra else ''}"
        )
    by_name = {item.image_id: item for item in together}
    return [by_name[key] for key in wanted]


def save_predictions(path: str | Path, predictions: Iterable[Prediction], protocol: Mapping[str, Any]) -> Path:
    """Write a predictions file, whole or not at all.

    Args:
        path: the file.
        predictions: one an image.
        protocol: how they were made, as plain data (`Protocol.to_dict`).

    Raises:
        MetricError: an image comes twice.
    """
    listed = list(predictions)
    by_id(((item.image_id, item) for item in listed), "predictions")
    write_json(path, {"protocol": dict(protocol), "predictions": [item.to_dict() for item in listed]})
    return Path(path)


def load_predictions(path: str | Path) -> PredictionsFile:
    """Read a predictions file.

    Raises:
        DataError: the file is missing, is not JSON, or is not a predictions file; the entry is named.
        MetricError: an image comes twice.
    """
    return parse_predictions(read_json(path), path)


def parse_predictions(content: Any, path: str | Path) -> PredictionsFile:
    """As `load_predictions`, of JSON that has been read already."""
    if not isinstance(content, dict) or not isinstance(content.get("predictions"), list):
        raise DataError(
            f'{path} is not a predictions file: expected {{"protocol": {{...}}, "predictions": '
            '[{"image_id", "filename", "caption", "references"}, ...]}'
        )
    listed = [_parse(entry, f"{path}, prediction {index}") for index, entry in enumerate(content["predictions"])]
    by_id(((item.image_id, item) for item in listed), f"{path}")
    protocol = content.get("protocol")
    return PredictionsFile(protocol if isinstance(protocol, dict) else {}, listed)


def _parse(entry: Any, where: str) -> Prediction:
    if not isinstance(entry, dict):
        raise DataError(f"{where} is not an object: {entry!r:.80}")
    rest = dict(entry)
    missing = [key for key in ("image_id", "caption") if key not in rest]
    if missing:
        raise DataError(f"{where} has no {' and no '.join(missing)}")
    image_id, caption = rest.pop("image_id"), rest.pop("caption")
    filename, references = rest.pop("filename", ""), rest.pop("references", [])
    if not isinstance(caption, str):
        raise DataError(f"{where}: the caption is not text: {caption!r:.80}")
    if not isinstance(references, list) or not all(isinstance(text, str) for text in references):
        raise DataError(f"{where}: the references are not a list of texts: {references!r:.80}")
    return Prediction(str(image_id), caption, str(filename), tuple(references), rest)


@dataclass(frozen=True)
class ReferenceFile:
    """References of a dataset.

    Attributes:
        captions: image id -> reference captions.
        splits: image id -> split; empty where the file knows of none.
        filenames: image id -> the picture's file name; empty where unknown.
        layout: `COCO`, `Flickr30k` or `predictions`.
    """

    captions: dict[str, list[str]]
    splits: dict[str, str] = field(default_factory=dict)
    filenames: dict[str, str] = field(default_factory=dict)
    layout: str = ""

    def of_split(self, split: str | None) -> ReferenceFile:
        """The references of one split; all of them for None.

        Raises:
            MetricError: the file knows of no splits, or not of this one.
        """
        if split is None:
            return self
        if not self.splits:
            raise MetricError(f"there is no split '{split}': these references ({self.layout}) have no splits")
        counts = Counter(self.splits.values())
        if split not in counts:
            raise MetricError(f"there is no split '{split}' in the references: {did_you_mean(split, counts)}")
        return self.only(key for key, name in self.splits.items() if name == split)

    def only(self, ids: Iterable[str]) -> ReferenceFile:
        """The references of some images, in this file's order."""
        wanted = set(ids)
        parts = (
            {key: value for key, value in part.items() if key in wanted}
            for part in (self.captions, self.splits, self.filenames)
        )
        captions, splits, filenames = parts
        return ReferenceFile(captions, splits, filenames, self.layout)  # type: ignore[arg-type]


def read_references(path: str | Path) -> ReferenceFile:
    """References from COCO's JSON, from this project's Flickr30k JSON, or out of a predictions file.

    Args:
        path: `{"images": [{"id"}], "annotations": [{"image_id", "caption"}]}`, or a list of `{"image_id",
            "captions": [...], "filename", "split"}`, or `{"predictions": [{"image_id", "references"}]}`.

    Raises:
        DataError: the file cannot be read or has another layout; the entry is named.
        MetricError: an image comes twice.
    """
    content = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        return _coco(content, path)
    if isinstance(content, list):
        return _flickr(content, path)
    if isinstance(content, dict) and isinstance(content.get("predictions"), list):
        return references_of(parse_predictions(content, path))
    raise DataError(
        f'{path} holds no references: expected {{"images": [...], "annotations": [{{"image_id", "caption"}}, ...]}} '
        '(COCO) or [{"image_id", "captions": [...], "filename", "split"}, ...] (Flickr30k)'
    )


def references_of(file: PredictionsFile) -> ReferenceFile:
    """The references that a predictions file carries."""
    filenames = {item.image_id: item.filename for item in file.predictions if item.filename}
    split = file.protocol.get("split")
    splits = {item.image_id: str(split) for item in file.predictions} if split else {}
    return ReferenceFile(file.references(), splits, filenames, "predictions")


def read_predictions(path: str | Path) -> tuple[dict[str, str], PredictionsFile | None]:
    """Captions from COCO's list of results, a dict of id -> caption, or a predictions file.

    Returns:
        (image id -> caption, the whole file where it is one of this project's).

    Raises:
        DataError: the file cannot be read or has another layout; the entry is named.
        MetricError: an image comes twice.
    """
    content = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("predictions"), list):
        file = parse_predictions(content, path)
        return file.captions(), file
    if isinstance(content, dict):
        pairs = [(key, _text(value, f"{path}, image {key}")) for key, value in content.items()]
    elif isinstance(content, list):
        entries = [_entry(item, ("image_id", "caption"), f"{path}, entry {i}") for i, item in enumerate(content)]
        pairs = [
            (entry["image_id"], _text(entry["caption"], f"{path}, image {entry['image_id']}")) for entry in entries
        ]
    else:
        raise DataError(f'{path} holds no predictions: expected [{{"image_id", "caption"}}, ...] or {{id: caption}}')
    return by_id(pairs, str(path)), None


def _coco(content: dict[str, Any], path: str | Path) -> ReferenceFile:
    images = [_entry(item, ("id",), f"{path}, image {i}") for i, item in enumerate(content.get("images") or [])]
    listed = by_id(((item["id"], item) for item in images), f"{path}, images")
    filenames = {key: str(item["file_name"]) for key, item in listed.items() if "file_name" in item}
    captions: dict[str, list[str]] = {key: [] for key in listed}
    for index, item in enumerate(content["annotations"]):
        where = f"{path}, annotation {index}"
        entry = _entry(item, ("image_id", "caption"), where)
        key = str(entry["image_id"])
        if listed and key not in listed:
            raise DataError(f"{where} is of image {key}, which is not among the images")
        captions.setdefault(key, []).append(_text(entry["caption"], where))
    return ReferenceFile(captions, {}, filenames, "COCO")


def _flickr(content: list[Any], path: str | Path) -> ReferenceFile:
    entries = []
    for index, item in enumerate(content):
        where = f"{path}, entry {index}"
        if isinstance(item, dict) and "captions" not in item and "grounded_caption" in item:
            raise DataError(
                f"{where} has the five captions only joined into one, in which they cannot be told apart: make the "
                "file again with prepare_flickr30k.py, which keeps them as 'captions'"
            )
        entry = _entry(item, ("image_id", "captions"), where)
        if not isinstance(entry["captions"], list):
            raise DataError(f"{where}: 'captions' is not a list: {entry['captions']!r:.80}")
        entries.append({**entry, "captions": [_text(text, where) for text in entry["captions"]]})
    found = by_id(((entry["image_id"], entry) for entry in entries), str(path))
    return ReferenceFile(
        {key: entry["captions"] for key, entry in found.items()},
        {key: str(entry["split"]) for key, entry in found.items() if entry.get("split")},
        {key: str(entry["filename"]) for key, entry in found.items() if entry.get("filename")},
        "Flickr30k",
    )


def _entry(item: Any, keys: tuple[str, ...], where: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise DataError(f"{where} is not an object: {item!r:.80}")
    missing = [key for key in keys if key not in item]
    if missing:
        raise DataError(f"{where} has no '{missing[0]}'; its keys: {', '.join(map(str, item)) or 'none'}")
    return item


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: the caption is not text: {value!r:.80}")
    return value

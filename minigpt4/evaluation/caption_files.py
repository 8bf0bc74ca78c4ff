"""References and predictions from the JSON layouts that people have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minigpt4.common.errors import DataError, MetricError, did_you_mean
from minigpt4.evaluation.caption_inputs import by_id
from minigpt4.evaluation.json_files import read_json
from minigpt4.evaluation.predictions import PredictionsFile, parse_predictions


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

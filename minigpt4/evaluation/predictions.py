"""A predictions file: what a model said, saved before anything is scored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minigpt4.common.errors import DataError, MetricError
from minigpt4.evaluation.caption_inputs import by_id, name_ids
from minigpt4.evaluation.json_files import read_json, write_json


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

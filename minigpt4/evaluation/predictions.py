"""Predictions and references: their files, labels of checkpoints, and the protocol by which scores can be compared."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from minigpt4.common.errors import DataError, MetricError, counted, did_you_mean, first_few
from minigpt4.common.files import read_json, write_json
from minigpt4.evaluation.java import TOKENIZER

PREFIX = "predictions_"
"""In front of a checkpoint's label in the name of its predictions file."""
_MAX_NAME_BYTES = 180
"""Longest name of a predictions file; file systems allow 255 bytes, and temporary names are longer."""


def checkpoint_labels(paths: Sequence[str]) -> list[str]:
    """Different names for people, as short as they can be.

    "epoch 3" for checkpoint_3.pth, else the file's name without its suffix and with spaces for underscores. Where these
    are equal: the file's name; or the folder's name before the label; or both; or else the path.

    Args:
        paths: paths of different files.
    """
    listed = [_forms(path) for path in paths]
    labels = [forms[0] for forms in listed]
    for label in _repeated(labels):
        group = [index for index, forms in enumerate(listed) if forms[0] == label]
        number = next(n for n in range(len(listed[0])) if len({listed[index][n] for index in group}) == len(group))
        for index in group:
            labels[index] = listed[index][number]
    while repeated := _repeated(labels):
        # A longer label may meet another file's: all of them become paths, one after the other if need be.
        labels = [forms[-1] if label in repeated else label for forms, label in zip(listed, labels, strict=True)]
    return labels


def predictions_file(label: str, taken: Collection[str]) -> str:
    """Name of the file that holds a checkpoint's predictions: predictions_epoch_3.json for "epoch 3".

    Letters of every script are kept, other characters become underscores. A name that is too long, or taken, ends
    with a hash of the label.

    Args:
        label: label of the checkpoint.
        taken: names of other files in the folder. Names that differ in case only are one name, as on macOS and Windows.
    """
    stem = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", label))
    name = f"{PREFIX}{stem}.json"
    if len(name.encode()) <= _MAX_NAME_BYTES and _folded(name) not in map(_folded, taken):
        return name
    return f"{PREFIX}{stem[:40]}-{hashlib.sha256(label.encode()).hexdigest()[:12]}.json"


def _forms(path: str) -> list[str]:
    """What a checkpoint may be called, from short to long; the last form is its path."""
    # A file name that is not UTF-8 has lone surrogates, which the results' JSON could not tell apart.
    file = Path(path.encode("utf-8", "backslashreplace").decode())
    epoch = re.fullmatch(r"checkpoint_(\d+)", file.stem)
    label = f"epoch {epoch.group(1)}" if epoch else file.stem.replace("_", " ")
    folder = file.parent.name
    return [label, file.name, f"{folder} {label}".lstrip(), str(Path(folder, file.name)), str(file)]


def _repeated(labels: Sequence[str]) -> list[str]:
    return [label for label, count in Counter(labels).items() if count > 1]


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


Value = TypeVar("Value")


@dataclass(frozen=True)
class Prediction:
    """The caption of one image.

    Attributes:
        image_id: id of the image, a string.
        caption: generated caption.
        filename: file name of the image, empty where unknown.
        references: reference captions of the image, empty where unknown.
        extra: further entries of the JSON object; keys must not repeat the names above.
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


@dataclass(frozen=True)
class ReferenceFile:
    """References of a dataset.

    Attributes:
        captions: image id -> reference captions.
        splits: image id -> split; empty where the file names none.
        layout: `COCO`, `Flickr30k` or `predictions`.
    """

    captions: dict[str, list[str]]
    splits: dict[str, str] = field(default_factory=dict)
    layout: str = ""

    def of_split(self, split: str | None) -> ReferenceFile:
        """The references of one split; all of them for None.

        Raises:
            MetricError: the file names no splits, or not this one.
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
        return ReferenceFile(
            {key: value for key, value in self.captions.items() if key in wanted},
            {key: value for key, value in self.splits.items() if key in wanted},
            self.layout,
        )


def by_id(items: Iterable[tuple[object, Value]], what: str) -> dict[str, Value]:
    """A dict with ids as strings.

    Args:
        items: (id, value) pairs.
        what: name of the values in messages, e.g. "predictions".

    Raises:
        MetricError: an id comes twice; 1 and "1" are the same id.
    """
    found: dict[str, Value] = {}
    repeated = []
    for key, value in items:
        name = str(key)
        if name in found:
            repeated.append(name)
        found[name] = value
    if repeated:
        raise MetricError(f"{what}: image ids that come twice (1 and '1' are the same): {first_few(repeated)}")
    return found


def merge_shards(shards: Iterable[Iterable[Prediction]], order: Sequence[str]) -> list[Prediction]:
    """The predictions of several processes as one list, which is what gets scored.

    Args:
        shards: predictions of each process.
        order: image ids of the complete set, in the order wanted.

    Raises:
        MetricError: an image is in two shards or in none, or is not in `order`.
    """
    items = ((item.image_id, item) for shard in shards for item in shard)
    found = by_id(items, "predictions of all processes")
    missing = [key for key in order if key not in found]
    extra = sorted(set(found) - set(order))
    if missing or extra:
        raise MetricError(
            f"predictions of all processes: {len(missing)} of {len(order)} images have none"
            f"{f' ({first_few(missing)})' if missing else ''}, {len(extra)} are not of this set"
            f"{f' ({first_few(extra)})' if extra else ''}"
        )
    return [found[key] for key in order]


def save_predictions(path: str | Path, predictions: Iterable[Prediction], protocol: Mapping[str, Any]) -> Path:
    """Write a predictions file atomically.

    What took hours to generate is written as it is, checked or not: `load_predictions` checks it.

    Args:
        path: path of the file.
        predictions: one prediction per image.
        protocol: how they were made, as plain data (`Protocol.to_dict`).
    """
    write_json(path, {"protocol": dict(protocol), "predictions": [item.to_dict() for item in predictions]})
    return Path(path)


def load_predictions(path: str | Path) -> PredictionsFile:
    """Read a predictions file.

    Raises:
        DataError: the file is missing, is not JSON, or is not a predictions file; the entry is named.
        MetricError: an image comes twice.
    """
    content = read_json(path)
    if not _is_predictions_file(content):
        raise DataError(
            f'{path} is not a predictions file: expected {{"protocol": {{...}}, "predictions": '
            '[{"image_id", "filename", "caption", "references"}, ...]}'
        )
    return _predictions_file(content, path)


def read_predictions(path: str | Path) -> tuple[dict[str, str], PredictionsFile | None]:
    """Captions from COCO's list of results, a dict of id -> caption, or a predictions file.

    Returns:
        (image id -> caption, the content of the file if it is a predictions file).

    Raises:
        DataError: the file cannot be read or has another layout; the entry is named.
        MetricError: an image comes twice.
    """
    content = read_json(path)
    if _is_predictions_file(content):
        file = _predictions_file(content, path)
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


def read_references(path: str | Path) -> ReferenceFile:
    """References from COCO's JSON, from this project's Flickr30k JSON, or from a predictions file.

    Args:
        path: `{"images": [{"id"}], "annotations": [{"image_id", "caption"}]}`, or a list of `{"image_id",
            "captions": [...], "filename", "split"}`, or `{"predictions": [{"image_id", "references"}]}`.

    Raises:
        DataError: the file cannot be read or has another layout; the entry is named.
        MetricError: an image comes twice.
    """
    content = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        return _coco_references(content, path)
    if isinstance(content, list):
        return _flickr_references(content, path)
    if _is_predictions_file(content):
        return references_of(_predictions_file(content, path))
    raise DataError(
        f'{path} holds no references: expected {{"images": [...], "annotations": [{{"image_id", "caption"}}, ...]}} '
        '(COCO) or [{"image_id", "captions": [...], "filename", "split"}, ...] (Flickr30k)'
    )


def references_of(file: PredictionsFile) -> ReferenceFile:
    """The references that a predictions file carries."""
    split = file.protocol.get("split")
    splits = {item.image_id: str(split) for item in file.predictions} if split else {}
    return ReferenceFile(file.references(), splits, "predictions")


def _is_predictions_file(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("predictions"), list)


def _predictions_file(content: dict[str, Any], path: str | Path) -> PredictionsFile:
    predictions = []
    for index, item in enumerate(content["predictions"]):
        where = f"{path}, prediction {index}"
        rest = dict(_entry(item, ("image_id", "caption"), where))
        image_id, caption = rest.pop("image_id"), _text(rest.pop("caption"), where)
        filename, references = rest.pop("filename", ""), rest.pop("references", [])
        if not isinstance(references, list) or not all(isinstance(text, str) for text in references):
            raise DataError(f"{where}: the references are not a list of texts: {references!r:.80}")
        predictions.append(Prediction(str(image_id), caption, str(filename), tuple(references), rest))
    by_id(((item.image_id, item) for item in predictions), str(path))
    protocol = content.get("protocol")
    return PredictionsFile(protocol if isinstance(protocol, dict) else {}, predictions)


def _coco_references(content: dict[str, Any], path: str | Path) -> ReferenceFile:
    images = [_entry(item, ("id",), f"{path}, image {i}") for i, item in enumerate(content.get("images") or [])]
    listed = by_id(((item["id"], item) for item in images), f"{path}, images")
    captions: dict[str, list[str]] = {key: [] for key in listed}
    for index, item in enumerate(content["annotations"]):
        where = f"{path}, annotation {index}"
        entry = _entry(item, ("image_id", "caption"), where)
        key = str(entry["image_id"])
        if listed and key not in listed:
            raise DataError(f"{where} is of image {key}, which is not among the images")
        captions.setdefault(key, []).append(_text(entry["caption"], where))
    return ReferenceFile(captions, {}, "COCO")


def _flickr_references(content: list[Any], path: str | Path) -> ReferenceFile:
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
        "Flickr30k",
    )


def _entry(item: Any, keys: Sequence[str], where: str) -> dict[str, Any]:
    """`item`, if it is an object with these keys."""
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


def references_sha256(references: Mapping[str, Sequence[str]]) -> str:
    """SHA-256 of image ids and references; the order of the images does not matter, that of captions does."""
    ordered = sorted((str(key), list(captions)) for key, captions in references.items())
    text = json.dumps(ordered, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Protocol:
    """How predictions were made and scored.

    Attributes:
        dataset: name of the dataset or path of the references.
        split: the split scored, None where the references name none.
        images: number of images scored.
        references: number of reference captions of all images.
        references_per_image: fewest and most references of one image.
        references_sha256: hash of ids and references; equal only where the same images were scored against the same
            captions.
        metrics: names of the metrics.
        tokenizer: tokenizer of the captions.
        scorer: package and version of the metrics.
        prompt: the instruction as the model saw it, None where unknown.
        generation: generation settings, e.g. num_beams and max_new_tokens.
        selection: which part of the split was scored, e.g. {"limit": 100}; empty for all of it.
        notes: anything else that a reader of the scores must know.
        task: what was asked where it is not captions: vqa, refer or detection; `images` then counts questions.
    """

    dataset: str
    split: str | None
    images: int
    references: int
    references_per_image: tuple[int, int]
    references_sha256: str
    metrics: tuple[str, ...]
    tokenizer: str = TOKENIZER
    scorer: str = ""
    prompt: str | None = None
    generation: dict[str, Any] = field(default_factory=dict)
    selection: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    task: str = ""

    @classmethod
    def of(
        cls,
        references: Mapping[str, Sequence[str]],
        metrics: Sequence[str],
        *,
        dataset: str,
        split: str | None = None,
        prompt: str | None = None,
        generation: Mapping[str, Any] | None = None,
        selection: Mapping[str, Any] | None = None,
        notes: Mapping[str, Any] | None = None,
        task: str = "",
    ) -> Protocol:
        """The protocol of scoring these references, with the counts and the hash taken from them."""
        counts = [len(captions) for captions in references.values()]
        return cls(
            dataset=dataset,
            split=split,
            images=len(counts),
            references=sum(counts),
            references_per_image=(min(counts, default=0), max(counts, default=0)),
            references_sha256=references_sha256(references),
            metrics=tuple(metrics),
            tokenizer="" if task else TOKENIZER,
            scorer=_version("pycocotools") if task == "detection" else "" if task else _version("pycocoevalcap"),
            prompt=prompt,
            generation=dict(generation or {}),
            selection=dict(selection or {}),
            notes=dict(notes or {}),
            task=task,
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON; empty and unknown values are left out."""
        plain = asdict(self)
        return {key: value for key, value in plain.items() if value not in (None, {}, "")}

    def differences(self, made: Mapping[str, Any]) -> list[str]:
        """What another protocol has otherwise ("split: was test, is val"); empty where scores can be compared.

        Of the notes, only the frozen weights count.

        Args:
            made: the other protocol, as read from JSON; further entries do not matter.
        """
        now, before = _comparable(json.loads(json.dumps(self.to_dict()))), _comparable(made)
        return [
            f"{key}: was {before.get(key)}, is {now.get(key)}"
            for key in dict.fromkeys([*now, *before])
            if now.get(key) != before.get(key)
        ]

    @property
    def unit(self) -> str:
        """What is counted and averaged over: images, or questions."""
        return "questions" if self.task else "images"

    @property
    def references_each(self) -> str:
        """How many references an image has, in words."""
        low, high = self.references_per_image
        return f"{counted(low, 'references') if low == high else f'{low} to {high} references'} each"

    def summary(self) -> str:
        """One line for a table's caption."""
        where = f"{self.dataset}, split {self.split}" if self.split else self.dataset
        part = ", ".join(f"{key} {value}" for key, value in self.selection.items())
        return (
            f"{where}{f' ({part})' if part else ''}: {counted(self.images, self.unit)}, {self.references_each}, "
            f"references {self.references_sha256[:12]}"
        )


def _comparable(plain: Mapping[str, Any]) -> dict[str, Any]:
    """A protocol's entries that two comparable scores share, with those of its sections named like generation.top_p."""
    notes = plain.get("notes")
    chosen: dict[str, Any] = {item.name: plain.get(item.name) for item in fields(Protocol) if item.name != "notes"}
    chosen["frozen_weights"] = notes.get("frozen_weights") if isinstance(notes, Mapping) else None
    found: dict[str, Any] = {}
    for key, value in chosen.items():
        found |= {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, Mapping) else {key: value}
    return found


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package

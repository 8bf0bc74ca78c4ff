"""The objects that images show, from files of several layouts, and the words for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt4.common.errors import DataError, MetricError, did_you_mean
from minigpt4.common.files import parse_json, read_json, read_lines
from minigpt4.datasets.readers.rows import index_rows
from minigpt4.evaluation.hallucination import chair, read_vocabulary
from minigpt4.scenes.truth import load_scenes, named_objects

EXPECTED = (
    'COCO\'s instances ({"images": [...], "annotations": [...], "categories": [...]}), JSON lines with "image" and '
    '"boxes" that have labels, or scenes.json'
)


@dataclass(frozen=True)
class Objects:
    """What images show.

    Attributes:
        source: the file.
        shown: image file -> names of all its objects.
        mentions: the objects that a text names.
    """

    source: str
    shown: Mapping[str, frozenset[str]]
    mentions: Callable[[str], list[str]]

    def of(self, image: str) -> frozenset[str]:
        """The objects of an image, by its path or else its file name.

        Raises:
            MetricError: the file does not name the image.
        """
        found = self.shown.get(image, self.shown.get(Path(image).name))
        if found is None:
            hint = did_you_mean(Path(image).name, list(self.shown)[:1000])
            raise MetricError(f"{self.source} does not have the image {image}: {hint}")
        return found

    def chair(self, captions: Mapping[str, str], images: Mapping[str, str]) -> dict[str, float]:
        """CHAIR of captions.

        Args:
            captions: id -> caption.
            images: id -> image file.
        """
        return chair((self.mentions(text), self.of(images[key])) for key, text in captions.items())


def read_objects(path: str | Path, words: str | Path | None = None) -> Objects:
    """The objects of images in a file of one of the layouts in `EXPECTED`.

    Args:
        path: the file.
        words: further words for the objects (`read_vocabulary`); those of drawn scenes are known.

    Raises:
        DataError: the file cannot be read, or has another layout.
    """
    shown: dict[str, set[str]] = {}
    if Path(path).suffix == ".jsonl":
        for number, line in read_lines(Path(path)):
            source = f"{path}, line {number}"
            try:
                row = parse_json(line)
            except DataError as error:
                raise DataError(f"{source}: {error}") from error
            _add_row(shown, row, source)
    else:
        content = read_json(path)
        if isinstance(content, dict) and isinstance(content.get("annotations"), list):
            shown = _coco_objects(content, path)
        elif isinstance(content, list):
            for number, row in enumerate(content, 1):
                _add_row(shown, row, f"{path}, entry {number}")
        else:
            scenes = load_scenes(path)
            found = {
                name: frozenset(f"{item.colour} {item.shape}" for item in scene.objects)
                for name, scene in scenes.items()
            }
            return Objects(str(path), found, lambda text: [" ".join(pair) for pair in named_objects(text)])
    if not shown:
        raise DataError(f"{path} names no image; expected {EXPECTED}")
    names = sorted(set().union(*shown.values()))
    vocabulary = read_vocabulary(names, words)
    return Objects(str(path), {image: frozenset(named) for image, named in shown.items()}, vocabulary.mentions)


def _add_row(shown: dict[str, set[str]], row: Any, source: str) -> None:
    """Add the labels of a row of the reader jsonl."""
    with _readable(source):
        labels = [box["label"].strip() for box in row["boxes"]]
        if not all(labels):
            raise DataError(f"{source}: a label in 'boxes' is empty")
        shown.setdefault(row["image"], set()).update(labels)


def _coco_objects(content: Mapping[str, Any], path: str | Path) -> dict[str, set[str]]:
    with _readable(str(path)):
        for entries in (content["images"], content["categories"]):
            index_rows(entries, "id", Path(path))  # refuses two entries of one id
        names = {item["id"]: str(item["name"]) for item in content["categories"]}
        files = {item["id"]: item["file_name"] for item in content["images"]}
        shown: dict[str, set[str]] = {name: set() for name in files.values()}
    for number, item in enumerate(content["annotations"], 1):
        with _readable(f"{path}, annotation {number}"):
            shown[files[item["image_id"]]].add(names[item["category_id"]])
    return shown


@contextmanager
def _readable(source: str) -> Iterator[None]:
    """Turn what is wrong with the layout inside into a DataError that names the place."""
    try:
        yield
    except (TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{source}: no objects can be read ({error!r}); expected {EXPECTED}") from error

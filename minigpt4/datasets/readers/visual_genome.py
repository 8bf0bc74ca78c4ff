"""Visual Genome's regions: phrases and the boxes that they describe, read a part of the file at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from minigpt4.common.boxes import Box, box_of_pixels, is_number
from minigpt4.common.errors import DataError, shown
from minigpt4.common.registry import readers
from minigpt4.common.types import Record
from minigpt4.datasets.readers.rows import Reader, RowProblem, require_object, stream_json_list, text_of

REGIONS = "region_descriptions.json"
IMAGES = "image_data.json"
MAX_PIXELS = 16_384
"""Regions of this many pixels or more are left out, as in OFA and MiniGPT-v2: they describe a scene, not an object."""


class RegionReader(Reader):
    """A folder with `region_descriptions.json` and `image_data.json`; images lie in VG_100K and VG_100K_2."""

    folder: ClassVar[bool] = True

    def read(self, path: Path) -> Iterator[Record | RowProblem]:
        """Every region of `path` below `MAX_PIXELS`, usable or not; errors as for `Reader.read`."""
        images = _images(path / IMAGES)
        for source, row in stream_json_list(path / REGIONS):
            regions = row.get("regions") if isinstance(row, dict) else None
            if not isinstance(regions, list):
                yield RowProblem(source, f"an object with 'id' and 'regions' is expected, found {shown(row)}")
                continue
            for number, region in enumerate(regions, 1):
                where = f"{source}, region {number}"
                try:
                    if not _is_large(region):
                        yield self._record(region, images, where)
                except DataError as error:
                    yield RowProblem(where, str(error))

    def _record(self, region: Any, images: dict[str, tuple[str, Any, Any]], source: str) -> Record:
        require_object(region)
        region_id, phrase = text_of(region, "region_id"), text_of(region, "phrase")
        if region_id is None or phrase is None:
            raise DataError(f"'region_id' and 'phrase' are expected, found {shown(region)}")
        image_id = shown(region.get("image_id"))
        if image_id not in images:
            raise DataError(f"{IMAGES} has no image {image_id}")
        file, width, height = images[image_id]
        box = box_of_pixels([region.get(key) for key in ("x", "y", "width", "height")], width, height)
        question, answer = self.turn(phrase.strip(), box)
        return Record(
            image_id=region_id, images=(file,), answers=(answer,), question=question, source=source, boxes=(box,)
        )

    @abstractmethod
    def turn(self, phrase: str, box: Box) -> tuple[str, str]:
        """Question and answer of a region."""


@readers.register("visual_genome")
class VisualGenomeReader(RegionReader):
    """The question is a phrase, the answer its box."""

    def turn(self, phrase: str, box: Box) -> tuple[str, str]:
        """Question and answer of a region."""
        return phrase, box.text


@readers.register("visual_genome_identify")
class VisualGenomeIdentifyReader(RegionReader):
    """The question is a box, the answer its phrase."""

    def turn(self, phrase: str, box: Box) -> tuple[str, str]:
        """Question and answer of a region."""
        return box.text, phrase


def _is_large(region: Any) -> bool:
    width, height = (region.get("width"), region.get("height")) if isinstance(region, dict) else (None, None)
    return is_number(width) and is_number(height) and width * height >= MAX_PIXELS  # type: ignore[operator]


def _images(path: Path) -> dict[str, tuple[str, Any, Any]]:
    """Path, width and height of each image by id; the path is the end of its URL, such as VG_100K/1.jpg."""
    images: dict[str, tuple[str, Any, Any]] = {}
    for source, row in stream_json_list(path):
        url = row.get("url") if isinstance(row, dict) and row.get("image_id") is not None else None
        if not isinstance(url, str) or not PurePosixPath(url.strip()).name:
            raise DataError(
                f"{source}: an object with 'image_id', 'url', 'width' and 'height' is expected, found {shown(row)}"
            )
        file = "/".join(PurePosixPath(url).parts[-2:])
        image_id, image = shown(row.get("image_id")), (file, row.get("width"), row.get("height"))
        if images.setdefault(image_id, image) != image:
            raise DataError(f"{source}: the image_id {image_id} comes twice, with different entries")
    return images

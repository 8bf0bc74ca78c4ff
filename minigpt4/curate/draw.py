"""Which pictures are described: drawn from all datasets together, and always the same ones."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random

from minigpt4.common.errors import ConfigError, DataError
from minigpt4.common.files import write_atomically
from minigpt4.common.schema import Config
from minigpt4.conversation.encoding import PromptEncoder
from minigpt4.curate.ledger import Event
from minigpt4.datasets.builders import build_datasets, prepare_datasets
from minigpt4.datasets.instruction import InstructionDataset
from minigpt4.datasets.shards.dataset import ShardDataset
from minigpt4.processors.image import open_image

Datasets = Mapping[str, InstructionDataset]
JPEG = b"\xff\xd8\xff"


def open_datasets(cfg: Config, encoder: PromptEncoder) -> Datasets:
    """The datasets to draw from; errors as for `build_datasets`."""
    return build_datasets(cfg, encoder, [cfg.curation.split], train=False, prepared=prepare_datasets(cfg))


def draw(cfg: Config, datasets: Datasets) -> list[Event]:
    """The draw of every sample; more pictures only add to it.

    Raises:
        ConfigError: More pictures are wanted than there are, or none.
        DataError: A sample's name cannot be read.
    """
    total = sum(len(dataset) for dataset in datasets.values())
    wanted = cfg.curation.pictures
    if not 1 <= wanted <= total:
        raise ConfigError(
            f"curation.pictures: {wanted} should be at least 1 and at most {total:,}, as many as there are"
        )
    return [
        {"sample": str(number), "step": "draw", "dataset": name, "index": index, "name": _name(datasets[name], index)}
        for number, (name, index) in enumerate(_lots(f"{cfg.curation.seed}-curation", wanted, datasets))
    ]


def _lots(seed: str, wanted: int, datasets: Datasets) -> Iterator[tuple[str, int]]:
    """Places in the datasets, each once, in the order of the draw."""
    generator = Random(seed)
    total = sum(len(dataset) for dataset in datasets.values())
    seen: set[int] = set()
    while len(seen) < wanted:
        place = generator.randrange(total)
        if place in seen:
            continue
        seen.add(place)
        for name, dataset in datasets.items():
            if place < len(dataset):
                yield name, place
                break
            place -= len(dataset)


def _name(dataset: InstructionDataset, index: int) -> str:
    return dataset.records[index].image_id


def picture_of(drawn: Event, datasets: Datasets) -> bytes:
    """The picture of a sample, encoded.

    Raises:
        DataError: It cannot be read, or lies elsewhere than when it was drawn.
    """
    dataset, index = datasets.get(drawn["dataset"]), drawn["index"]
    if dataset is None or index >= len(dataset) or _name(dataset, index) != drawn["name"]:
        raise DataError(
            f"sample {drawn['sample']} was drawn as {drawn['name']}, number {index} of dataset '{drawn['dataset']}', "
            "which is another one now; restore the data, or begin a new curation.dir"
        )
    if isinstance(dataset, ShardDataset):
        return dataset.records.sample(index).picture
    try:
        return dataset.image_path(index).read_bytes()
    except OSError as error:
        raise DataError(f"image {dataset.image_path(index)} cannot be read: {error.strerror}") from error


def save_picture(path: Path, picture: bytes, name: str) -> None:
    """Keep a picture as JPEG, whole or not at all; one that is JPEG already stays as it is.

    Raises:
        DataError: It cannot be decoded; the message has its `name`.
    """
    decoded = open_image(io.BytesIO(picture), name)
    if not picture.startswith(JPEG):
        buffer = io.BytesIO()
        decoded.save(buffer, "JPEG", quality=95)
        picture = buffer.getvalue()
    write_atomically(path, lambda temporary: temporary.write_bytes(picture))

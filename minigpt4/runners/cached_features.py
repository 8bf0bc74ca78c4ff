"""Images -> frozen encoders -> feature caches, divided among the ranks; an interrupted run is resumed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from minigpt4.common.distributed import Processes
from minigpt4.common.errors import DataError
from minigpt4.common.files import remove_temporary_files
from minigpt4.common.logging import Progress
from minigpt4.common.schema import DatasetConfig, ModelConfig, RunConfig
from minigpt4.datasets.feature_cache import FeatureCache, cache_identity, check_identity, write_shard
from minigpt4.datasets.instruction import InstructionDataset
from minigpt4.models.loading import build_image_encoders
from minigpt4.models.vision import image_statistics
from minigpt4.processors.image import stack_images

logger = logging.getLogger(__name__)
SHARD_IMAGES = 1024
"""Images of a shard: 50 MB at 48 KB each, and what a killed process loses at most."""
NamedImage = tuple[str, Tensor | str]
"""(name, image), or (name, why it cannot be read)."""


def attach_feature_caches(
    groups: Sequence[Mapping[str, InstructionDataset]],
    configs: Mapping[str, DatasetConfig],
    model: ModelConfig,
    run: RunConfig,
    dtype: torch.dtype,
    processes: Processes,
) -> bool:
    """Give every dataset with a `feature_cache` its cache, computing first what is missing.

    Args:
        groups: datasets by name, for training and for validation.
        configs: section `datasets` of the configuration.
        model: section `model`.
        run: section `run`.
        dtype: number format that the encoders compute in.
        processes: ranks of the run; each computes a share.

    Returns:
        Whether every image comes from a cache, so that the encoders need not be loaded.

    Raises:
        DataError: A cache is stale or broken.
    """
    datasets = [(name, dataset) for group in groups for name, dataset in group.items()]
    cached = [(name, dataset) for name, dataset in datasets if configs[name].feature_cache]

    # Loaded when the first missing image has been read: images that can never be read must not cause it.
    @lru_cache(maxsize=1)
    def encoders() -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        return build_image_encoders(model, processes.device, dtype)

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        vision, bridge = encoders()
        return bridge(vision(images.to(processes.device))).to("cpu", torch.float16)

    for name, dataset in cached:
        folder = Path(str(configs[name].feature_cache))
        identity = cache_identity(model, image_statistics(model), dtype)
        processes.run_on_main(lambda folder=folder, identity=identity: _open_folder(folder, identity))  # type: ignore[misc]
        missing = _missing(dataset, FeatureCache(folder, identity))
        processes.gather(None)  # no rank adds shards before all ranks have seen which are there
        if missing:
            share = missing[processes.rank :: processes.world_size]
            loader: DataLoader[list[NamedImage]] = DataLoader(
                _Images(dataset, share),  # type: ignore[arg-type]
                batch_size=run.eval_batch_size,
                num_workers=run.num_workers,
                collate_fn=list,
                generator=torch.Generator(),  # leaves the run's own random state alone
            )
            with Progress(f"features of {name}", len(share), "images") as progress:
                _fill(folder, loader, encode, progress)
            processes.gather(None)
        dataset.feature_cache = FeatureCache(folder, identity)
        logger.info("dataset %s: %d images in the feature cache %s", name, len(dataset.feature_cache), folder)
    return len(cached) == len(datasets)


def _open_folder(folder: Path, identity: Mapping[str, str]) -> None:
    """Check that a cache is of this model, and delete what killed processes left in it."""
    check_identity(folder, identity)
    remove_temporary_files(folder, "*")


def _missing(dataset: InstructionDataset, cache: FeatureCache) -> list[tuple[int, int]]:
    """Each image that the cache lacks, as its first record and its number there."""
    firsts: dict[str, tuple[int, int]] = {}
    for index, record in enumerate(dataset.records):
        for number, image in enumerate(record.images):
            if image not in cache:
                firsts.setdefault(image, (index, number))
    return list(firsts.values())


class _Images(Dataset[NamedImage]):
    """Images of some records, read by the loader's workers."""

    def __init__(self, dataset: InstructionDataset, places: Sequence[tuple[int, int]]) -> None:
        self.dataset = dataset
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: int) -> NamedImage:
        index, number = self.places[place]
        image = self.dataset.records[index].images[number]
        try:
            return image, self.dataset.open_image(index, number)
        except DataError as error:
            return image, str(error)


def _fill(
    folder: Path, loader: DataLoader[list[NamedImage]], encode: Callable[[Tensor], Tensor], progress: Progress
) -> None:
    """Compute and write the features of a loader's images, shard by shard."""
    names: list[str] = []
    features: list[Tensor] = []
    unreadable: list[str] = []
    for batch in loader:
        unreadable += [image for _, image in batch if isinstance(image, str)]
        readable = {name: image for name, image in batch if isinstance(image, Tensor)}
        if readable:
            features += encode(stack_images(list(readable.values())))
            names += readable
        while len(names) >= SHARD_IMAGES:
            write_shard(folder, names[:SHARD_IMAGES], features[:SHARD_IMAGES])
            del names[:SHARD_IMAGES], features[:SHARD_IMAGES]
        progress.advance(len(batch))
    if names:
        write_shard(folder, names, features)
    if unreadable:
        logger.warning("%d images cannot be read and are not cached: %s", len(unreadable), unreadable[0])

"""Fill feature caches: images -> frozen encoders -> disk, divided among the ranks, resumable."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from minigpt4.common.cli import add_config_arguments, exit_on_error, read_config
from minigpt4.common.distributed import Processes, start_processes
from minigpt4.common.errors import ConfigError, DataError
from minigpt4.common.logging import set_up_logging
from minigpt4.common.schema import Config
from minigpt4.datasets.builders import build_datasets
from minigpt4.datasets.feature_cache import FeatureCache, cache_identity, check_identity, write_shard
from minigpt4.datasets.instruction import InstructionDataset
from minigpt4.models.loading import build_image_encoders, build_prompt_encoder, train_precision
from minigpt4.models.qformer import QFormer
from minigpt4.models.vision import VisionEncoder
from minigpt4.processors.image import normalize, stack_images

logger = logging.getLogger(__name__)
SHARD_PICTURES = 1024
"""Pictures a shard: 50 MB at 48 KB each, and what a killed process loses at most."""
Encoders = tuple[VisionEncoder, QFormer]
Loaded = tuple[str, Tensor | str]


class _Pictures(Dataset[Loaded]):
    """Index -> (name, picture), or (name, why it cannot be read)."""

    def __init__(self, dataset: InstructionDataset, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> Loaded:
        index = self.indices[number]
        try:
            return self.dataset.records[index].image, self.dataset.open(index)
        except DataError as error:
            return self.dataset.records[index].image, str(error)


def attach_feature_caches(
    cfg: Config, datasets: Sequence[Mapping[str, InstructionDataset]], dtype: torch.dtype, processes: Processes
) -> bool:
    """Give every dataset with a `feature_cache` its cache, filling in first what is missing.

    Args:
        cfg: The configuration.
        datasets: Of training and of validation.
        dtype: Number format that the encoders compute in.
        processes: Of the run; each computes a share.

    Returns:
        Whether every picture comes from a cache, so that the encoders need not be loaded.

    Raises:
        DataError: A cache is stale or broken.
        ConfigError: A dataset's processors prepare pictures of several sizes for one cache.
    """
    everything = [(name, dataset) for group in datasets for name, dataset in group.items()]
    wanted = [(name, dataset) for name, dataset in everything if cfg.datasets[name].feature_cache]
    # Built when the first picture that is missing has been read: a picture that never can be must not load them.
    encoders = lru_cache(maxsize=1)(lambda: build_image_encoders(cfg.model, processes.device, dtype))
    for name, dataset in wanted:
        folder = Path(str(cfg.datasets[name].feature_cache))
        identity = cache_identity(cfg.model, _picture_size(name, dataset, cfg), dtype)
        processes.run_on_main(lambda folder=folder, identity=identity: check_identity(folder, identity))  # type: ignore[misc]
        missing = _missing(dataset, FeatureCache(folder, identity))
        processes.gather(len(missing))  # nobody adds shards before everybody has seen which are there
        if missing:
            _fill(folder, dataset, missing[processes.rank :: processes.world_size], encoders, cfg, processes)
            processes.gather(None)
        dataset.feature_cache = FeatureCache(folder, identity)
        logger.info("dataset %s: %d pictures in the feature cache %s", name, len(dataset.feature_cache), folder)
    return len(wanted) == len(everything)


def _picture_size(name: str, dataset: InstructionDataset, cfg: Config) -> int:
    size = getattr(dataset.image_processor, "image_size", None)
    if size != cfg.model.image_size:
        raise ConfigError(
            f"datasets.{name}: pictures are prepared with side {size}, the model takes {cfg.model.image_size}; "
            f"a feature cache needs both to be the same: leave datasets.{name}.vis_processor.*.image_size out"
        )
    return cfg.model.image_size


def _missing(dataset: InstructionDataset, cache: FeatureCache) -> list[int]:
    """The first record of each picture that the cache lacks."""
    firsts: dict[str, int] = {}
    for index, record in enumerate(dataset.records):
        if record.image not in cache:
            firsts.setdefault(record.image, index)
    return list(firsts.values())


def _fill(
    folder: Path,
    dataset: InstructionDataset,
    indices: Sequence[int],
    encoders: Callable[[], Encoders],
    cfg: Config,
    processes: Processes,
) -> None:
    """Compute and write this process's share, a shard at a time."""
    names: list[str] = []
    features: list[Tensor] = []
    unreadable: list[str] = []
    with tqdm(
        total=len(indices), desc=f"features of {dataset.name}", unit="picture", disable=_hidden(processes)
    ) as bar:
        for batch in _batches(dataset, indices, cfg):
            bar.update(len(batch))
            unreadable += [item for _, item in batch if isinstance(item, str)]
            readable = [(name, item) for name, item in batch if isinstance(item, Tensor)]
            if readable:
                pixels = stack_images([picture for _, picture in readable])
                features += _encode(pixels.to(processes.device), *encoders())
                names += [name for name, _ in readable]
            while len(names) >= SHARD_PICTURES:
                write_shard(folder, names[:SHARD_PICTURES], features[:SHARD_PICTURES])
                del names[:SHARD_PICTURES], features[:SHARD_PICTURES]
    if names:
        write_shard(folder, names, features)
    if unreadable:
        logger.warning("%d pictures cannot be read and are not cached: %s", len(unreadable), unreadable[0])


def _hidden(processes: Processes) -> bool | None:
    return None if processes.is_main else True


def _batches(dataset: InstructionDataset, indices: Sequence[int], cfg: Config) -> Iterator[list[Loaded]]:
    yield from DataLoader(
        _Pictures(dataset, indices),
        batch_size=cfg.run.eval_batch_size,
        num_workers=cfg.run.num_workers,
        collate_fn=list,
        generator=torch.Generator(),  # the run's own random state stays as it is
    )


@torch.no_grad()
def _encode(pixels: Tensor, vision: VisionEncoder, qformer: QFormer) -> list[Tensor]:
    return list(qformer(vision(normalize(pixels))).to("cpu", torch.float16))


@exit_on_error()
def main(arguments: Sequence[str] | None = None) -> None:
    """Fill the caches of a training configuration, alone or under torchrun, without training."""
    parser = argparse.ArgumentParser(prog="python -m minigpt4.runners.precompute", description=main.__doc__)
    add_config_arguments(parser)
    args = parser.parse_args(arguments)
    loaded = read_config(args)
    cfg = loaded.config
    if not any(dataset.feature_cache for dataset in cfg.datasets.values()):
        raise ConfigError("no dataset has a feature_cache; name a folder in datasets.NAME.feature_cache")
    processes = start_processes(cfg.run.device)
    set_up_logging(processes.rank)
    encoder = build_prompt_encoder(cfg.model)
    groups = [
        build_datasets(cfg.datasets, cfg.model, encoder, splits, seed=cfg.run.seed, train=train)
        for splits, train in ((cfg.run.train_splits, True), (cfg.run.valid_splits, False))
    ]
    attach_feature_caches(
        cfg, groups, train_precision(cfg.run.amp, cfg.model.precision, processes.device).frozen, processes
    )
    processes.shutdown()


if __name__ == "__main__":
    main()

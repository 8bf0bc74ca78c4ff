"""Datasets -> batches: the mixture, the collate function and the data loaders."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, ConcatDataset, DataLoader, Dataset

from minigpt4.common.errors import MiniGPT4Error
from minigpt4.common.schema import RunConfig
from minigpt4.common.types import CACHED_NDIM, IGNORED_LABEL, IMAGE_POSITION, Batch, Sample
from minigpt4.datasets.instruction import InstructionDataset
from minigpt4.datasets.sampler import GroupedOrder, SampleKey, SampleOrder, StepSampler, Stream
from minigpt4.processors.image import CLIP, ChannelStatistics, normalize, stack_images

logger = logging.getLogger(__name__)
Datasets = Mapping[str, InstructionDataset]


class BatchLoader(DataLoader[Any]):
    """A torch DataLoader of `Batch`; a worker's error that a user can cause arrives without the worker's traceback."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except MiniGPT4Error as error:
            raise type(error)(str(error).rpartition(f"{type(error).__name__}: ")[2].strip()) from None


def steps_per_epoch(run: RunConfig, datasets: Datasets, world_size: int) -> int:
    """Optimizer steps of an epoch: `run.iters_per_epoch`, or once through the data (at least one).

    Warns where a step has more samples than there are.
    """
    step_size, samples = run.batch_size * run.accum_grad_iters * world_size, sum(map(len, datasets.values()))
    if step_size > samples:
        logger.warning(
            "a step has %d samples, but there are only %d to train on: some repeat within a step; lower run.batch_size",
            step_size,
            samples,
        )
    return run.iters_per_epoch or max(1, samples // step_size)


def train_loader(
    run: RunConfig,
    datasets: Datasets,
    *,
    world_size: int = 1,
    rank: int = 0,
    start_step: int = 0,
    statistics: ChannelStatistics = CLIP,
) -> BatchLoader:
    """One rank's micro-batches from `start_step` to the end of the run, over all epochs.

    Args:
        run: training's configuration.
        datasets: what `build_datasets(..., train=True)` returned.
        world_size: number of ranks.
        rank: rank of this process.
        start_step: first optimizer step.
        statistics: what the model normalises images by.

    Returns:
        A loader of `accum_grad_iters` batches for each remaining optimizer step.
    """
    mixture = MixtureDataset(list(datasets.values()))
    order = SampleOrder(
        list(datasets),
        [len(dataset) for dataset in datasets.values()],
        [dataset.sample_ratio for dataset in datasets.values()],
        run.seed,
        [dataset.order() for dataset in datasets.values()],
    )
    stream: Stream = order
    if run.group_by_length > 1:
        step_size = run.batch_size * run.accum_grad_iters * world_size
        stream = GroupedOrder(order, step_size, run.group_by_length, mixture.text_length)
    sampler = StepSampler(
        stream,
        batch_size=run.batch_size,
        accumulation=run.accum_grad_iters,
        world_size=world_size,
        rank=rank,
        start_step=start_step,
        stop_step=run.max_epoch * steps_per_epoch(run, datasets, world_size),
    )
    return BatchLoader(mixture, batch_sampler=sampler, **_worker_options(run, statistics))


def valid_loader(
    run: RunConfig,
    datasets: Datasets,
    *,
    world_size: int = 1,
    rank: int = 0,
    statistics: ChannelStatistics = CLIP,
) -> BatchLoader | None:
    """One rank's share of the validation batches, the same each time; every batch is in exactly one share.

    Args:
        run: training's configuration.
        datasets: what `build_datasets(..., train=False)` returned.
        world_size: number of ranks.
        rank: rank of this process.
        statistics: what the model normalises images by.

    Returns:
        None without datasets. The batches do not depend on the ranks; shares may differ by one batch, and be empty.
    """
    if not datasets:
        return None
    joined: ConcatDataset[Any] = ConcatDataset(list(datasets.values()))
    batches = list(BatchSampler(range(len(joined)), run.eval_batch_size, drop_last=False))
    return BatchLoader(joined, batch_sampler=batches[rank::world_size], **_worker_options(run, statistics))


class MixtureDataset(Dataset[Sample]):
    """The datasets of a run, indexed by the sampler's keys.

    Args:
        datasets: datasets in the order of `SampleKey.dataset`.
    """

    def __init__(self, datasets: Sequence[InstructionDataset]) -> None:
        self.datasets = datasets

    def __len__(self) -> int:
        return sum(len(dataset) for dataset in self.datasets)

    def __getitem__(self, key: SampleKey) -> Sample:
        return self.datasets[key.dataset].sample(key.record, key.epoch)

    def text_length(self, key: SampleKey) -> int:
        """Characters of a sample's instruction and answer; no image is opened."""
        return self.datasets[key.dataset].text_length(key.record, key.epoch)


def collate(samples: Sequence[Sample], statistics: ChannelStatistics = CLIP) -> Batch:
    """Collate B samples: ids padded with 0 and labels with IGNORED_LABEL, both (B, T).

    Positions are found here, in a loader worker: on a device each search would stall the training step.

    Args:
        samples: B samples.
        statistics: what the model normalises images by; used here where another processor returned floats.
    """
    lengths = [len(sample.encoded.input_ids) for sample in samples]
    input_ids = torch.zeros(len(samples), max(lengths), dtype=torch.long)
    labels = torch.full_like(input_ids, IGNORED_LABEL)
    for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
        input_ids[row, :length] = torch.tensor(sample.encoded.input_ids)
        labels[row, :length] = torch.tensor(sample.encoded.labels)
    images = [image for sample in samples for image in sample.images]
    is_token = torch.arange(input_ids.shape[1]) < torch.tensor(lengths)[:, None]
    is_target = torch.zeros_like(is_token)
    is_target[:, :-1] = labels[:, 1:] != IGNORED_LABEL
    return Batch(
        image_ids=[sample.image_id for sample in samples],
        images=_stack(images, statistics) if images else None,
        input_ids=input_ids,
        labels=labels,
        lengths=lengths,
        num_targets=sum(sample.encoded.num_targets for sample in samples),
        image_positions=(input_ids.flatten() == IMAGE_POSITION).nonzero().squeeze(1),
        token_positions=is_token.flatten().nonzero().squeeze(1),
        target_positions=is_target[is_token].nonzero().squeeze(1),
        target_columns=is_target.any(dim=0).nonzero().squeeze(1),
        skipped=[message for sample in samples for message in sample.skipped],
    )


def _stack(images: Sequence[Tensor], statistics: ChannelStatistics) -> Tensor:
    """Images, or cached features, of one batch; uint8 is normalised here where another processor returned floats."""
    if images[0].ndim + 1 == CACHED_NDIM:
        return torch.stack(list(images))
    mixed = len({image.dtype for image in images}) > 1
    return stack_images([normalize(image, statistics) for image in images] if mixed else images)


def _worker_options(run: RunConfig, statistics: ChannelStatistics) -> dict[str, Any]:
    return {
        "num_workers": run.num_workers,
        "persistent_workers": run.num_workers > 0,
        "worker_init_fn": _start_process_group,
        "collate_fn": partial(collate, statistics=statistics),
        "pin_memory": run.device != "cpu" and torch.cuda.is_available(),
        # Starting to iterate draws a number; from a generator of its own, so that the run's state is unchanged.
        "generator": torch.Generator(),
    }


def _start_process_group(worker: int) -> None:
    """Put a loader worker into a process group of its own.

    Ctrl-C and torchrun's SIGTERM go to every process of a group; the main process handles them, finishes its step with
    the workers' help and then ends them itself.
    """
    os.setpgrp()

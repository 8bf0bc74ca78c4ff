"""The folder of an export: it appears when it is complete, and weights are written a shard at a time."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt4.common.errors import ConfigError, DataError
from minigpt4.common.files import hold, write_atomically, write_json, writing

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SHARD_BYTES = 2 * 2**30
"""Largest file of weights, and so about the memory that writing takes besides the model's."""
SPARE_BYTES = 64 * 2**20
"""Room on the disk for the files beside the weights."""


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is made when it is written.

    Attributes:
        shape: its shape.
        dtype: its number format.
        make: makes it, on the CPU.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> LazyTensor:
        """A tensor that is there already."""
        return cls(tuple(tensor.shape), tensor.dtype, tensor.detach)


def check_new(folder: Path) -> None:
    """Refuse to write over something.

    Raises:
        ConfigError: The folder exists.
    """
    if os.path.lexists(folder):  # unlike Path's, it answers for any name
        raise ConfigError(f"--out: {folder} exists; name a new folder, or delete this one first")


@contextmanager
def new_folder_of(folder: Path) -> Iterator[Path]:
    """A hidden folder beside `folder` that becomes it at the end; nothing is left of it after an error.

    What a killed export left is deleted by the next one into the same folder.

    Raises:
        ConfigError: `folder` exists.
        DataError: Another process writes it, or it cannot be written.
    """
    check_new(folder)
    unfinished = folder.with_name(f".{folder.name}.partial")
    with ExitStack() as held:
        with writing(folder):
            held.enter_context(hold(folder.with_name(f".{folder.name}.lock"), folder))
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            with writing(folder):
                unfinished.mkdir()
            yield unfinished
            check_new(folder)  # it may have been made meanwhile
            with writing(folder):
                unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def check_space(tensors: Mapping[str, LazyTensor], folder: Path) -> None:
    """Refuse an export that does not fit on the disk.

    Args:
        tensors: what will be written.
        folder: the folder, which need not exist.

    Raises:
        DataError: There is too little room.
    """
    needed = sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors.values()) + SPARE_BYTES
    place = next(parent for parent in folder.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise DataError(
            f"--out: the export takes {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free in {place}; free "
            "space, or choose a folder on another disk"
        )


def write_weights(tensors: Mapping[str, LazyTensor], folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write tensors as sharded safetensors with transformers' file names; no more than a shard is held in memory.

    Args:
        tensors: names -> tensors.
        folder: folder that exists.
        shard_bytes: largest size of a file; a larger tensor gets a file of its own.
    """
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    shapes = {name: torch.empty(each.shape, dtype=each.dtype, device="meta") for name, each in tensors.items()}
    plan = split_torch_state_dict_into_shards(
        shapes, filename_pattern="model{suffix}.safetensors", max_shard_size=shard_bytes
    )
    for file, names in plan.filename_to_tensors.items():
        # Mapped tensors share the storage of their file, which the format does not know.
        state = {name: tensors[name].make().clone(memory_format=torch.contiguous_format) for name in names}
        write_atomically(folder / file, partial(save_file, state, metadata={"format": "pt"}))
        del state  # before the next shard is made
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)

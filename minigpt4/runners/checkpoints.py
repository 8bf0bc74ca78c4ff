"""The files of a run: what is written when, and which one to go on from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from minigpt4.common.checkpoint import read_checkpoint, write_checkpoint
from minigpt4.common.errors import CheckpointError
from minigpt4.common.files import write_atomically

logger = logging.getLogger(__name__)
LAST = "checkpoint_last.pth"
BEST = "checkpoint_best.pth"
RESUME_KEYS = ("model", "optimizer", "scaler", "epoch", "step", "rng", "progress", "run")


def epoch_file(epoch: int) -> str:
    """Name of the checkpoint at the end of an epoch, counted from 0 as in the published runs."""
    return f"checkpoint_{epoch}.pth"


def save(folder: Path, name: str, content: Mapping[str, Any]) -> Path:
    """Write a checkpoint whole, and beside it the trained tensors alone as .safetensors with their metadata.

    Args:
        folder: The run's.
        name: `epoch_file(...)`, LAST or BEST.
        content: With "model" (names -> tensors) and "metadata" (names -> strings).
    """
    path = folder / name
    write_checkpoint(path, content)
    tensors: dict[str, Tensor] = {key: value.contiguous() for key, value in content["model"].items()}
    metadata: dict[str, str] = content["metadata"]
    write_atomically(
        path.with_suffix(".safetensors"), lambda temporary: save_file(tensors, temporary, metadata=metadata)
    )
    return path


def read_resumable(path: Path) -> dict[str, Any]:
    """A checkpoint that a run can go on from.

    Raises:
        CheckpointError: It cannot be read, or holds weights only.
    """
    content = read_checkpoint(path)
    missing = [key for key in RESUME_KEYS if key not in content]
    if missing:
        raise CheckpointError(
            f"{path} holds weights but no state of a run to go on from (missing: {', '.join(missing)}); "
            f"to start a new run from its weights, set model.ckpt={path} and leave run.resume_ckpt_path out"
        )
    return content


def newest_whole(folder: Path, after: int = 0) -> Path | None:
    """The newest checkpoint that can be read; a broken one is passed over with a warning. None: there is none.

    The best one is a copy of another, so it is looked at last.

    Args:
        folder: The run's.
        after: Only checkpoints written after this time count (`newest_written`).

    Raises:
        CheckpointError: There are checkpoints, but none is whole.
    """
    times = {path: time for path, time in _written(folder).items() if time > after}
    files = sorted(times, key=lambda path: (path.name != BEST, times[path]), reverse=True)
    for path in files:
        try:
            read_resumable(path)
        except CheckpointError as error:
            logger.warning("%s; trying the checkpoint before it", error)
            continue
        return path
    if files:
        raise CheckpointError(
            f"no checkpoint in {folder} is whole ({len(files)} tried); move them away to start from the beginning"
        )
    return None


def newest_written(folder: Path) -> int:
    """When the newest checkpoint of a folder was written, whole or not: modification time in ns; 0: there is none."""
    return max(_written(folder).values(), default=0)


def _written(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.glob("checkpoint_*.pth")}

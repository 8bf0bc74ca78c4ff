"""The files of a run: its folder, its checkpoints, and resuming from them."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping
from datetime import datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from minigpt4.common.checkpoint import read_checkpoint, write_checkpoint
from minigpt4.common.errors import CheckpointError, ConfigError
from minigpt4.common.files import write_atomically
from minigpt4.common.schema import RunConfig
from minigpt4.runners.optim import Plan

logger = logging.getLogger(__name__)


def seed_all(seed: int) -> None:
    """Seed python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """The generators' states, of types that torch loads with `weights_only=True`."""
    version, words, gauss = random.getstate()
    numpy_state: Any = np.random.get_state()
    name, keys, position, has_gauss, cached = numpy_state
    state: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put the generators into a state that `rng_state` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def check_run_folder(run: RunConfig, resumed: Path | None = None) -> None:
    """Refuse a folder that would mix two runs; done before the large files are read.

    Args:
        run: `run_dir` is looked at, where it is set.
        resumed: Checkpoint to go on from; its own folder is the run's.

    Raises:
        ConfigError: `run_dir` holds another run's checkpoints, or is not the resumed checkpoint's folder.
    """
    if run.run_dir is None:
        return
    folder = Path(run.run_dir)
    if resumed is not None:
        if folder.resolve() != resumed.parent.resolve():
            raise ConfigError(
                f"run.run_dir is {folder}, but run.resume_ckpt_path lies in {resumed.parent}, where the run goes on; "
                "leave run.run_dir out"
            )
    elif any(folder.glob("checkpoint_*.pth")):
        raise ConfigError(
            f"run.run_dir: {folder} holds the checkpoints of another run; go on with it by "
            "--options run.resume_ckpt_path=auto, or choose another folder"
        )


def make_run_folder(run: RunConfig, resumed: Path | None = None) -> Path:
    """The run's folder, made where needed; to be called in the main process only.

    Args:
        run: `run_dir` is taken as it is; else a new folder is made below `output_dir`.
        resumed: Checkpoint to go on from; its own folder is the run's.

    Raises:
        ConfigError: It cannot be made.
    """
    try:
        if resumed is not None:
            return resumed.parent
        if run.run_dir is not None:
            Path(run.run_dir).mkdir(parents=True, exist_ok=True)
            return Path(run.run_dir)
        return new_folder(Path(run.output_dir) / run.job_name)
    except OSError as error:
        raise ConfigError(f"the run folder cannot be made: {error}; set run.output_dir or run.run_dir") from error


def new_folder(parent: Path) -> Path:
    """A folder below `parent` that nobody else has, named by the time."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, 1000):
        folder = parent / (stamp if number == 1 else f"{stamp}-{number}")
        try:
            folder.mkdir()  # fails where it exists, so that two runs started together never share one
        except FileExistsError:
            continue
        return folder
    raise ConfigError(f"no free run folder below {parent}")


def write_config(folder: Path, resolved: dict[str, Any]) -> None:
    """Put the resolved configuration into the run folder."""
    text = yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True)
    write_atomically(folder / "config.yaml", lambda temporary: temporary.write_text(text, encoding="utf-8"))


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


def latest_valid_checkpoint(folder: Path, after: int = 0) -> Path | None:
    """The newest checkpoint that can be read; a broken one is passed over with a warning. None: there is none.

    The best one is a copy of another, so it is looked at last.

    Args:
        folder: The run's.
        after: Only checkpoints written after this time count (`latest_checkpoint_time`).

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


def latest_checkpoint_time(folder: Path) -> int:
    """When the newest checkpoint of a folder was written, whole or not: modification time in ns; 0: there is none."""
    return max(_written(folder).values(), default=0)


def _written(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.glob("checkpoint_*.pth")}


IGNORED_KEYS = (
    "paths.*",
    "evaluation.*",
    "curation.*",
    "model.ckpt",  # the checkpoint's own weights take its place
    "run.num_workers",
    "run.log_freq",
    "run.save_freq",
    "run.trackers",
    "run.device",
    "run.shard_llm",
    "run.job_name",
    "run.output_dir",
    "run.run_dir",
    "run.resume_ckpt_path",
    "datasets.*.batch_size",  # with these two, the samples of a step count: Plan.global_batch is compared
    "run.accum_grad_iters",
    "datasets.*.eval_batch_size",
    "datasets.*.shard_index",
    "datasets.*.bad_shards",  # which shards are used is compared by content
    "datasets.*.feature_cache",  # changes the numbers by float16 rounding only
)
WARN_KEYS = (
    "run.max_epoch",  # stretches the cosine
    "run.valid_splits",
    "run.amp",
    "model.precision",
    "model.vit_weights",  # files may have moved; what is in them is compared by fingerprint
    "model.q_former_model",
    "model.llama_model",
    "model.prompt_path",
    "datasets.*.annotations",
    "datasets.*.images",
    "datasets.*.shards",
    "datasets.*.prompts",
)
OPEN_ENDED_KEYS = ("model.vit_args.*", "model.q_former_args.*")
"""Only here is a key that the checkpoint lacks a difference; elsewhere it is an option added to the project since."""


def find_resume_point(run: RunConfig) -> Path | None:
    """The checkpoint to go on from; None: start from the beginning. To be called in the main process only.

    Raises:
        ConfigError: `auto` without a run_dir.
        CheckpointError: The checkpoint named cannot be gone on from.
    """
    if run.resume_ckpt_path is None:
        return None
    if run.resume_ckpt_path != "auto":
        path = Path(run.resume_ckpt_path)
        read_resumable(path)
        return path
    if run.run_dir is None:
        raise ConfigError(
            "run.resume_ckpt_path: auto looks into run.run_dir, which is not set; set it to the run's folder, "
            "or name a checkpoint"
        )
    found = latest_valid_checkpoint(Path(run.run_dir))
    if found is None:
        logger.info("%s holds no checkpoint yet: starting from the beginning", run.run_dir)
    return found


def data_identity(datasets: Mapping[str, Any]) -> dict[str, str]:
    """A digest of what each dataset trains on."""
    return {name: dataset.identity() for name, dataset in datasets.items()}


def run_identity(plan: Plan, data: Mapping[str, str]) -> dict[str, Any]:
    """What a checkpoint remembers of its run beyond the configuration."""
    return {
        "steps_per_epoch": plan.steps_per_epoch,
        "global_batch": plan.global_batch,
        "world_size": plan.world_size,
        "data": dict(data),
    }


def check_same_run(
    content: Mapping[str, Any], resolved: Mapping[str, Any], identity: Mapping[str, Any], path: Path
) -> None:
    """Refuse to go on where the run would become another one; warn of what may matter.

    Args:
        content: Of the checkpoint.
        resolved: The configuration now.
        identity: `run_identity` now.
        path: Of the checkpoint, for messages.

    Raises:
        ConfigError: The message names every key that differs, with both values.
    """
    saved = content["run"]
    refused: list[str] = []
    warned: list[str] = []
    for key, old, new in _differences(content["config"], resolved):
        if any(fnmatch(key, pattern) for pattern in IGNORED_KEYS):
            continue
        told = any(fnmatch(key, pattern) for pattern in WARN_KEYS)
        (warned if told else refused).append(f"{key}: {old!r} then, {new!r} now")
    for key in ("steps_per_epoch", "global_batch", "data"):
        if saved[key] != identity[key]:
            refused.append(f"{key}: {saved[key]} then, {identity[key]} now")
    if refused and saved["world_size"] != identity["world_size"]:
        refused.append(
            f"processes: {saved['world_size']} then, {identity['world_size']} now; start as many, or set "
            "datasets.*.batch_size and run.accum_grad_iters so that batch_size x accum_grad_iters x processes stays"
        )
    if refused:
        raise ConfigError(
            f"run.resume_ckpt_path: {path} belongs to another run ({'; '.join(refused)}); set these back to go on "
            f"with it, or start a new run from its weights with model.ckpt={path}"
        )
    if saved["world_size"] != identity["world_size"]:
        warned.append(
            f"processes: {saved['world_size']} then, {identity['world_size']} now: the same samples in each step, "
            "but sums are rounded in another order"
        )
    for difference in warned:
        logger.warning("going on with a difference: %s", difference)


def _differences(old: Any, new: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) of every leaf that differs."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        if old != new:
            yield prefix, old, new
        return
    for name in [*old, *(name for name in new if name not in old)]:
        key = f"{prefix}.{name}" if prefix else str(name)
        if name in old or any(fnmatch(key, pattern) for pattern in OPEN_ENDED_KEYS):
            yield from _differences(old.get(name), new.get(name), key)


def load_optimizer(updater: Any, content: Mapping[str, Any], path: Path) -> None:
    """Put back the moments and the loss scale.

    Raises:
        CheckpointError: They belong to other parameters.
    """
    try:
        updater.optimizer.load_state_dict(content["optimizer"])
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: its optimizer state is of other parameters: {error}") from error
    # A run without a loss scale leaves nothing to put back; one that needs it starts with a fresh one.
    if updater.scaler.is_enabled() and content["scaler"]:
        updater.scaler.load_state_dict(content["scaler"])

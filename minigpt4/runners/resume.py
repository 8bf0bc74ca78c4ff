"""Going on with a run: where from, whether it is still the same run, and its state put back."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from minigpt4.common.errors import CheckpointError, ConfigError
from minigpt4.common.schema import RunConfig
from minigpt4.runners.checkpoints import newest_whole, read_resumable
from minigpt4.runners.plan import Plan

logger = logging.getLogger(__name__)

HARMLESS = (
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
TELLING = (
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
FREE_KEYS = ("model.vit_args.*", "model.q_former_args.*")
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
    found = newest_whole(Path(run.run_dir))
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
        if any(fnmatch(key, pattern) for pattern in HARMLESS):
            continue
        told = any(fnmatch(key, pattern) for pattern in TELLING)
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
        if name in old or any(fnmatch(key, pattern) for pattern in FREE_KEYS):
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

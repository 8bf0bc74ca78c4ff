"""The checkpoints of a run, and the check that a checkpoint belongs to the run that resumes."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from minigpt4.common.checkpoint import read_checkpoint, write_checkpoint, write_safetensors
from minigpt4.common.config import OLD_PRECISIONS
from minigpt4.common.errors import CheckpointError, ConfigError
from minigpt4.common.logging import append_epoch, write_epochs
from minigpt4.common.schema import RunConfig
from minigpt4.runners.optim import Plan
from minigpt4.runners.run_folder import AUTO, LOG, check_run_folder

logger = logging.getLogger(__name__)

LAST = "checkpoint_last.pth"
"""Checkpoint within an epoch."""
BEST = "checkpoint_best.pth"
"""Copy of the checkpoint with the lowest validation loss."""
EPOCH_FILE = re.compile(r"checkpoint_(\d+)\.(?:pth|safetensors)")
"""Names of the files of `epoch_file`, with the epoch."""
RESUME_KEYS = ("model", "optimizer", "scaler", "epoch", "step", "progress", "run")
"""Entries of a checkpoint without which no run can be resumed."""
IGNORED_KEYS = (
    "paths.*",
    "evaluation.*",
    "curation.*",
    "serving.*",
    "model.recompute_llm",
    "model.ckpt",  # the checkpoint's own weights take its place
    "run.accum_grad_iters",  # with batch_size and the ranks, it makes Plan.global_batch, which is compared
    "run.global_batch",
    "run.eval_batch_size",
    "run.num_workers",
    "run.log_freq",
    "run.save_freq",
    "run.trackers",
    "run.device",
    "run.shard_llm",
    "run.keep_checkpoints",
    "run.job_name",
    "run.output_dir",
    "run.run_dir",
    "run.resume_ckpt_path",
    "datasets.*.batch_size",  # until these two moved to `run`
    "datasets.*.eval_batch_size",
    "datasets.*.reader",  # what it reads is compared by content; for shards, older checkpoints say "none"
    "datasets.*.shard_index",
    "datasets.*.shard_cache",
    "datasets.*.shard_cache_gb",
    "datasets.*.bad_shards",  # the shards that are used are compared by content
    "datasets.*.bad_rows",  # and so are the rows
    "datasets.*.split",
    "datasets.*.task",  # of evaluations
    "datasets.*.feature_cache",  # changes the numbers by float16 rounding only
)
"""Differences between a checkpoint's configuration and the run's that do not matter."""
WARN_KEYS = (
    "run.max_epoch",  # stretches the cosine
    "run.batch_size",  # the same samples in each step, but sums are rounded in another order
    "run.valid_splits",
    "model.precision",
    "model.vit_weights",  # files may have moved; their content is compared by fingerprint
    "model.q_former_model",
    "model.llama_model",
    "model.prompt_path",
    "datasets.*.annotations",
    "datasets.*.images",
    "datasets.*.image_name",
    "datasets.*.shards",
    "datasets.*.prompts",
)
"""Differences that may matter; all others are refused."""
OPEN_ENDED_KEYS = ("model.vit_args.*", "model.q_former_args.*")
"""Only here is a key that the checkpoint lacks a difference; elsewhere it is an option added to the project since."""


def run_identity(config: Mapping[str, Any], plan: Plan, datasets: Mapping[str, Any]) -> dict[str, Any]:
    """The entries "config" and "run" of every checkpoint, which say what run it belongs to.

    Args:
        config: resolved configuration in plain form.
        plan: steps and batch sizes.
        datasets: training datasets by name.
    """
    run = {
        "steps_per_epoch": plan.steps_per_epoch,
        "global_batch": plan.global_batch,
        "data": {name: dataset.identity() for name, dataset in datasets.items()},
    }
    return {"config": dict(config), "run": run}


def find_resume_point(run: RunConfig, identity: Mapping[str, Any]) -> Path | None:
    """The checkpoint to resume from; None: start from the beginning. To be called on rank 0 only.

    Args:
        run: section `run` of the configuration.
        identity: `run_identity` of this run.

    Raises:
        ConfigError: `auto` without a run_dir, a checkpoint of another run, or a run_dir that holds another run.
        CheckpointError: The checkpoint cannot be resumed from.
    """
    check_run_folder(run)
    found = None if run.resume_ckpt_path in (None, AUTO) else Path(str(run.resume_ckpt_path))
    if run.resume_ckpt_path == AUTO:
        found = latest_valid_checkpoint(Path(str(run.run_dir)))
        if found is None:
            logger.info("%s holds no checkpoint yet: starting from the beginning", run.run_dir)
    if found is not None:
        check_same_run(read_resumable(found), identity, found)
    return found


def latest_valid_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the latest step in a run folder, skipping broken ones with a warning; None: there is none.

    The step is read from the file, whose time of modification changes when it is copied. Among checkpoints of the same
    step, that of an epoch comes before its copies.

    Raises:
        CheckpointError: There are checkpoints, but none is valid.
    """
    files = sorted(folder.glob("checkpoint_*.pth"))
    valid: dict[Path, tuple[int, bool, bool]] = {}
    for path in files:
        try:
            content = read_resumable(path)
        except CheckpointError as error:
            logger.warning("%s; the other checkpoints are tried", error)
        else:
            valid[path] = content["step"], path.name == epoch_file(content["epoch"]), path.name != BEST
    if files and not valid:
        raise CheckpointError(
            f"no checkpoint in {folder} is valid ({len(files)} tried); move them away to start from the beginning"
        )
    return max(valid, key=valid.__getitem__, default=None)


def read_resumable(path: Path) -> dict[str, Any]:
    """A checkpoint from which a run can be resumed.

    Raises:
        CheckpointError: It cannot be read, or holds weights only.
    """
    content = read_checkpoint(path)
    missing = [key for key in RESUME_KEYS if key not in content]
    if missing:
        raise CheckpointError(
            f"{path} holds weights but not the state of a run (missing: {', '.join(missing)}), so it cannot be "
            f"resumed; to start a new run from its weights, set model.ckpt={path} and leave run.resume_ckpt_path out"
        )
    return content


def check_same_run(content: Mapping[str, Any], identity: Mapping[str, Any], path: Path) -> None:
    """Refuse to resume where the run would become another one; warn of differences that may matter.

    Args:
        content: content of the checkpoint.
        identity: `run_identity` of this run.
        path: path of the checkpoint, for messages.

    Raises:
        ConfigError: The message names every key that differs, with both values.
    """
    saved, ours = content["run"], identity["run"]
    refused: list[str] = []
    warned: list[str] = []
    for key, old, new in _differences(_with_one_precision(content["config"]), identity["config"]):
        if not any(fnmatch(key, pattern) for pattern in IGNORED_KEYS):
            tolerated = any(fnmatch(key, pattern) for pattern in WARN_KEYS)
            (warned if tolerated else refused).append(f"{key}: was {old!r}, is {new!r}")
    refused += [
        f"{key}: was {saved[key]}, is {ours[key]}"
        for key in ("steps_per_epoch", "data", "global_batch")
        if saved[key] != ours[key]
    ]
    if saved["global_batch"] != ours["global_batch"]:
        refused[-1] += f", on any number of processes with run.global_batch={saved['global_batch']}"
    if refused:
        raise ConfigError(
            f"run.resume_ckpt_path: {path} belongs to another run ({'; '.join(refused)}); set these back to resume it, "
            f"or start a new run from its weights with model.ckpt={path}"
        )
    for difference in warned:
        logger.warning("resuming with a difference: %s", difference)


def epoch_file(epoch: int) -> str:
    """Name of the checkpoint at the end of an epoch, counted from 0 as in the published runs."""
    return f"checkpoint_{epoch}.pth"


def save(folder: Path, name: str, content: Mapping[str, Any]) -> Path:
    """Write a checkpoint atomically, and beside it the trained tensors alone as .safetensors with their metadata.

    Args:
        folder: run folder.
        name: `epoch_file(...)`, LAST or BEST.
        content: entries of the checkpoint, among them "model" (names -> tensors) and "metadata" (names -> strings).

    Raises:
        CheckpointError: The disk is full, or the folder cannot be written.
    """
    path = folder / name
    with _report_failed_write(path):
        write_checkpoint(path, content)
        _write_safetensors(path, content)
    return path


def save_epoch(folder: Path, content: Mapping[str, Any], values: Mapping[str, Any], keep: int | None) -> Path:
    """Write the checkpoint of an epoch, and then what `restore_derived_files` can derive from it.

    Args:
        folder: run folder.
        content: entries of the checkpoint.
        values: the epoch's object in log.txt.
        keep: `run.keep_checkpoints`.

    Raises:
        CheckpointError: As for `save`.
    """
    path = save(folder, epoch_file(content["epoch"]), content)
    if _is_best(content):
        save(folder, BEST, content)
    with _report_failed_write(folder / LOG):
        append_epoch(folder / LOG, values)
    delete_old_checkpoints(folder, content, keep)
    return path


def delete_old_checkpoints(folder: Path, content: Mapping[str, Any], keep: int | None) -> None:
    """Delete the checkpoints of epochs, with their .safetensors, but for the latest and the best.

    Files of later epochs stay: they are another attempt's. A file that cannot be deleted is named, and tried again
    after the next epoch.

    Args:
        folder: run folder.
        content: checkpoint of the latest epoch, which is complete with its derived files.
        keep: epochs to keep, the latest ones; None: all.
    """
    if keep is None:
        return
    oldest, best = content["epoch"] - keep + 1, content["progress"]["best_epoch"]
    for path in folder.glob("checkpoint_*"):
        name = EPOCH_FILE.fullmatch(path.name)
        if name and int(name[1]) < oldest and int(name[1]) != best:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                logger.warning("run.keep_checkpoints: %s cannot be deleted: %s", path, error)


def restore_derived_files(
    path: Path, content: Mapping[str, Any], epochs: Sequence[Mapping[str, Any]], keep: int | None
) -> None:
    """Write the files that follow from a checkpoint again: the run may have been killed between it and them.

    Args:
        path: checkpoint that the run is resumed from.
        content: its entries.
        epochs: the objects of log.txt up to its step.
        keep: `run.keep_checkpoints`.

    Raises:
        CheckpointError: As for `save`.
    """
    folder = path.parent
    with _report_failed_write(path):
        _write_safetensors(path, content)
    if path.name != BEST:
        _restore_best(folder, content)
    with _report_failed_write(folder / LOG):
        write_epochs(folder / LOG, epochs)
    if path.name == epoch_file(content["epoch"]):
        delete_old_checkpoints(folder, content, keep)


def _restore_best(folder: Path, content: Mapping[str, Any]) -> None:
    """Make BEST the best epoch up to a checkpoint: it may be older, or a later epoch's, of an abandoned attempt."""
    if _is_best(content):
        save(folder, BEST, content)
        return
    wanted = content["progress"]["best_epoch"]
    try:
        found = read_resumable(folder / BEST)["epoch"]
    except CheckpointError:
        found = None  # there is none, or it is damaged
    if found == wanted:
        return
    try:
        if wanted is not None:
            save(folder, BEST, read_resumable(folder / epoch_file(wanted)))
            return
    except CheckpointError as error:
        logger.warning("%s cannot be written again: %s", folder / BEST, error)
    for suffix in (".pth", ".safetensors"):
        stale = (folder / BEST).with_suffix(suffix)
        if stale.exists():
            aside = stale.with_name(f"abandoned_{stale.name}")
            logger.warning("%s is not of this run's best epoch so far; it is now %s", stale, aside.name)
            stale.replace(aside)


def _write_safetensors(path: Path, content: Mapping[str, Any]) -> None:
    """Write the trained tensors of the checkpoint `path` beside it."""
    write_safetensors(path.with_suffix(".safetensors"), content["model"], content["metadata"])


def _is_best(content: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is that of the best epoch; one within an epoch never is."""
    best: bool = content["progress"]["best_epoch"] == content["epoch"]
    return best


@contextmanager
def _report_failed_write(path: Path) -> Iterator[None]:
    """Turn a failed write into an error that names the file (torch and safetensors have their own kinds)."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path} cannot be written ({reason}); free space on the disk or make the folder "
            "writable, then resume with run.resume_ckpt_path"
        ) from error


def _with_one_precision(config: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's configuration, with the `run.amp` of older ones as the `model.precision` that it meant."""
    if "amp" not in config.get("run", {}):
        return dict(config)
    run, model = dict(config["run"]), dict(config["model"])
    amp = run.pop("amp")
    if model["precision"] == "auto":
        model["precision"] = OLD_PRECISIONS["run.amp"].get(amp, amp)
    return {**config, "run": run, "model": model}


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

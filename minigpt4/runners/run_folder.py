"""The folder of a run, made and checked without torch: a mistake there is found before the seconds of importing it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from minigpt4.common.distributed import restarts_allowed
from minigpt4.common.errors import ConfigError
from minigpt4.common.files import hold, new_folder, remove_temporary_files, require_writable, write_text
from minigpt4.common.logging import write_epochs
from minigpt4.common.schema import RunConfig

AUTO = "auto"
"""`run.resume_ckpt_path`: resume from the latest valid checkpoint in `run.run_dir`, if there is one."""
CONFIG = "config.yaml"
"""Resolved configuration of the run."""
LOG = "log.txt"
"""One JSON object an epoch."""
LOCK = ".run.lock"
"""Held by the process that trains in the folder."""


def check_run_folder(run: RunConfig) -> None:
    """Refuse a folder that would mix two runs, that restarted workers would not find, or that cannot be written.

    Args:
        run: section `run` of the configuration.

    Raises:
        ConfigError: The message names the folder and what to do.
    """
    resume = run.resume_ckpt_path
    if restarts_allowed() and (run.run_dir is None or resume != AUTO):
        raise ConfigError(
            "torchrun --max-restarts: restarted workers find their run only in a fixed folder; set "
            f"--options run.run_dir=FOLDER run.resume_ckpt_path={AUTO}, or leave --max-restarts out"
        )
    if run.run_dir is None and resume == AUTO:
        raise ConfigError(
            f"run.resume_ckpt_path: {AUTO} looks into run.run_dir, which is not set; set it to the run's folder, "
            "or name a checkpoint"
        )
    if run.run_dir is not None:
        folder, key = Path(run.run_dir), "run.run_dir"
    elif resume is not None:
        folder, key = Path(resume).parent, "run.resume_ckpt_path"
    else:
        folder, key = Path(run.output_dir) / run.job_name, "run.output_dir"
    if resume not in (None, AUTO) and folder.resolve() != Path(str(resume)).parent.resolve():
        raise ConfigError(
            f"run.run_dir is {folder}, but run.resume_ckpt_path is in {Path(str(resume)).parent}, where the run "
            "continues; leave run.run_dir out"
        )
    if run.run_dir is not None and resume is None:
        _refuse_used(folder)
    require_writable(folder, key)


def open_run_folder(run: RunConfig, config: Mapping[str, Any], held: ExitStack, resumed: Path | None = None) -> Path:
    """Make the run's folder where needed, and write config.yaml into it; to be called on rank 0 only.

    What killed attempts left is deleted: temporary files, and log.txt where none of them wrote a checkpoint.
    Until `held` is closed, no other run can open the folder.

    Args:
        run: section `run` of the configuration: `run_dir` is taken as it is; else a new folder is made in `output_dir`.
        config: resolved configuration in plain form.
        held: closed at the end of the run.
        resumed: checkpoint to resume from, whose folder is the run's; None: start from the beginning.

    Raises:
        ConfigError: The folder cannot be made, nothing can be written into it, or a run has begun in it since.
        DataError: Another run is writing to the folder.
    """
    try:
        if resumed is not None:
            folder = resumed.parent
        elif run.run_dir is not None:
            folder = Path(run.run_dir)
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = new_folder(Path(run.output_dir) / run.job_name)
        held.enter_context(hold(folder / LOCK, folder))
        if resumed is None:
            _refuse_used(folder)  # once more: nobody else writes now
        for name in ("checkpoint_*", CONFIG, LOG):
            remove_temporary_files(folder, name)
        if resumed is None:
            write_epochs(folder / LOG, [])
        write_text(folder / CONFIG, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
    except OSError as error:
        raise ConfigError(
            f"the run folder cannot be made or written: {error}; set run.output_dir or run.run_dir to a folder that "
            "can be written, on a disk with free space"
        ) from error
    return folder


def _refuse_used(folder: Path) -> None:
    if any(folder.glob("checkpoint_*.pth")):
        raise ConfigError(
            f"run.run_dir: {folder} holds the checkpoints of an earlier run; continue it, also where it was "
            f"interrupted, by adding --options run.resume_ckpt_path={AUTO}, or choose another folder"
        )

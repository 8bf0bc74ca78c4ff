"""The folder of a run: one for each, never shared by accident."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from minigpt4.common.errors import ConfigError
from minigpt4.common.files import write_atomically
from minigpt4.common.schema import RunConfig


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

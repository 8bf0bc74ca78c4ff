"""The torchrun launch that a process belongs to, and the run folder that earlier attempts of it began.

torchrun starts the workers anew when one of them dies, and they must find the folder of the attempt before. Its run id
does not tell them, since later launches may share it; nor does its restart count, which a machine whose own workers
were well does not raise. What stays the same from attempt to attempt, and never comes again, is the log folder that
torchrun's agent on each machine makes for itself: a file in the run folder remembers those.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from minigpt4.common.distributed import Processes
from minigpt4.common.errors import ConfigError
from minigpt4.common.files import remove_temporary_files, write_atomically
from minigpt4.common.logging import truncate_log
from minigpt4.common.schema import RunConfig
from minigpt4.runners.checkpoints import find_resume_point, latest_checkpoint_time, latest_valid_checkpoint

logger = logging.getLogger(__name__)
MARK = ".launch.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What a run folder remembers of the launch that trains in it.

    Attributes:
        agents: Of all machines, as `own_agent` names them.
        older: Modification time in ns of the newest checkpoint that was there before the launch; 0: there was none.
        ended: Whether the run came to its end.
    """

    agents: tuple[str, ...]
    older: int = 0
    ended: bool = False

    @classmethod
    def read(cls, folder: Path) -> Mark | None:
        """That of a run folder; None: it has none that can be read."""
        try:
            values = json.loads((folder / MARK).read_text(encoding="utf-8"))
            return cls(agents=tuple(values["agents"]), older=int(values["older"]), ended=bool(values["ended"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        """Put it into a run folder."""
        text = json.dumps(asdict(self)) + "\n"
        write_atomically(folder / MARK, lambda temporary: temporary.write_text(text, encoding="utf-8"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A launch, at the start of one of its attempts.

    Attributes:
        mark: To be left in the run folder; None: not under torchrun.
        folder: Where an earlier attempt trained; None: this one starts a run.
    """

    mark: Mark | None = None
    folder: Path | None = None

    @classmethod
    def join(cls, run: RunConfig, processes: Processes) -> Launch:
        """Find out what has gone before; every process must call it.

        Raises:
            ConfigError: The run folder lies on another machine.
        """
        everyone = processes.gather((own_agent(), int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0)))
        agents = tuple(sorted({agent for agent, _ in everyone if agent is not None}))
        if not agents:
            return cls()
        restarted = any(count > 0 for _, count in everyone)
        seen = processes.gather(find_begun(run, agents, restarted))
        begun = processes.run_on_main(lambda: _of_main(seen))
        if begun is None:
            return cls(mark=Mark(agents=agents))
        folder, mark = begun
        return cls(mark=replace(mark, agents=agents, ended=False), folder=folder)

    def resume_point(self, run: RunConfig) -> Path | None:
        """The checkpoint to go on from: after a restart the newest of this launch, else as the configuration says.

        None: start from the beginning. To be called in the main process only.

        Raises:
            ConfigError, CheckpointError: As in `find_resume_point`.
        """
        if self.mark is None or self.folder is None:
            return find_resume_point(run)
        found = latest_valid_checkpoint(self.folder, self.mark.older) or find_resume_point(run)
        logger.info("restarted by torchrun: the run goes on in %s, from %s", self.folder, found or "the beginning")
        return found

    def begin(self, folder: Path, start_from: Path | None) -> None:
        """Mark the run folder, and clear away what a killed attempt left half done; in the main process only.

        Args:
            folder: Of the run.
            start_from: The checkpoint to go on from; None: start from the beginning.
        """
        if self.mark is None:
            return
        if self.folder is None:
            replace(self.mark, older=latest_checkpoint_time(folder)).write(folder)
            return
        remove_temporary_files(folder, "checkpoint_*")
        if start_from is None:
            truncate_log(folder / "log.txt", 0)
        self.mark.write(folder)

    def end(self, folder: Path, processes: Processes) -> None:
        """Note that the run has come to its end.

        A process that fails while it takes its leave makes torchrun restart a run that is done: it must find it done.
        Without such a restart, whatever the same workers train next is another run.
        """
        mark = Mark.read(folder) if self.mark is not None and processes.is_main else None
        if mark is not None:
            replace(mark, ended=True).write(folder)


def own_agent() -> str | None:
    """torchrun's agent that started this process: machine and log folder of its own; None: not under torchrun."""
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # LOG FOLDER/attempt_N/LOCAL RANK/error.json
    if "TORCHELASTIC_RUN_ID" not in os.environ or not error_file:
        return None
    return f"{socket.gethostname()}:{Path(error_file).parent.parent.parent}"


def find_begun(run: RunConfig, agents: Sequence[str], restarted: bool) -> tuple[Path, Mark] | None:
    """The run folder that an earlier attempt of this launch began, as far as this machine can see.

    Args:
        run: Says where run folders lie.
        agents: Of this attempt; one of them at least has lived through all the others.
        restarted: Whether any process was started anew after a failure.
    """
    for folder in _folders(run):
        mark = Mark.read(folder)
        if mark is not None and not set(mark.agents).isdisjoint(agents) and (restarted or not mark.ended):
            return folder, mark
    return None


def _folders(run: RunConfig) -> list[Path]:
    """Where this run may have been begun, the newest first."""
    if run.run_dir is not None:
        return [Path(run.run_dir)]
    if run.resume_ckpt_path not in (None, "auto"):
        return [Path(run.resume_ckpt_path).parent]
    marks = (Path(run.output_dir) / run.job_name).glob(f"*/{MARK}")
    return sorted((mark.parent for mark in marks), reverse=True)


def _of_main(seen: Sequence[tuple[Path, Mark] | None]) -> tuple[Path, Mark] | None:
    """What the main process found.

    Raises:
        ConfigError: It found nothing, but another process did.
    """
    for begun in seen:
        if begun is not None and seen[0] is None:
            raise ConfigError(
                f"torchrun restarted the run with its main process on {socket.gethostname()}, where the run folder "
                f"{begun[0]} of {begun[1].agents[0].split(':')[0]} cannot be seen; set run.output_dir (or run.run_dir) "
                "to a folder on a file system that all machines share"
            )
    return seen[0]

"""Scripts of the project in processes of their own, which do not import torch and transformers again.

Each test process has one server with the imports done; a script is a fork of it, and so are the ranks of a run.
torchrun itself is used where it is tested (`test_elastic.py`).
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["minigpt4.runners.train", "minigpt4.runners.evaluate", "minigpt4.api", "transformers.models.llama.modeling_llama"]
)
TIMEOUT = 600
"""Seconds after which a script is taken for hung, also on a busy machine."""


@dataclass(frozen=True)
class Finished:
    """How a script ended: exit status (that of the first rank that failed), and what all ranks printed."""

    returncode: int
    stdout: str
    stderr: str


def launch(
    *command: str,
    ranks: int = 1,
    cwd: str | Path | None = None,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Finished:
    """Run `script.py ARGUMENTS` or `-m module ARGUMENTS` to its end.

    Args:
        command: script or module, and its arguments.
        ranks: processes, with the variables that torchrun sets where there are several.
        cwd: working folder.
        environment: further environment variables; OMP_NUM_THREADS is 1 unless it is among them.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "stdout"), Path(folder, "stderr")
        plain = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "160"}
        variables = {**os.environ, **plain, **environment}
        arguments = (command, ranks, str(cwd or Path.cwd()), variables, files)
        process = CONTEXT.Process(target=_run_ranks, args=arguments)
        process.start()
        process.join(TIMEOUT)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{command} did not end: {files[1].read_text()[-3000:]}")
        return Finished(process.exitcode, *(file.read_text() for file in files))


def _run_ranks(command: tuple[str, ...], ranks: int, cwd: str, variables: dict[str, str], files: list[Path]) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    for descriptor, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    running = set()
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            if ranks > 1:
                shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks)}
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks)}
                os.environ.update(shared | own)
            os._exit(_run(command))
        running.add(pid)
    status = 0
    while running:
        pid, code = os.wait()
        running.discard(pid)
        if code and not status:
            status = os.waitstatus_to_exitcode(code)
            for other in running:
                os.kill(other, signal.SIGTERM)
    sys.exit(status)


def _run(command: tuple[str, ...]) -> int:
    """Exit status of the script, run in this process."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # torch was loaded before the variable was set
    try:
        if command[0] == "-m":
            sys.argv = list(command[1:])
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(command)
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0

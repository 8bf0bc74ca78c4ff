"""Scripts of the project in processes of their own, which do not import torch and transformers again.

Each test process has one server with the imports done; a script is a fork of it, and so are the ranks of a run and
torchrun's agents and workers.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import runpy
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import MappingProxyType
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "minigpt4.runners.train",
        "minigpt4.runners.evaluate",
        "minigpt4.api",
        "transformers.models.llama.modeling_llama",
        "torch.distributed.run",
    ]
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
    before: Callable[[int], None] | None = None,
) -> Finished:
    """Run `script.py ARGUMENTS` or `-m module ARGUMENTS` to its end.

    Args:
        command: script or module, and its arguments.
        ranks: processes, with the variables that torchrun sets where there are several.
        cwd: working folder.
        environment: further environment variables; OMP_NUM_THREADS is 1 unless it is among them.
        before: called in each process with its rank, before the script.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "stdout"), Path(folder, "stderr")
        arguments = (command, ranks, str(cwd or Path.cwd()), _variables(environment), files, before)
        process = CONTEXT.Process(target=_run_ranks, args=arguments)
        process.start()
        process.join(TIMEOUT)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{command} did not end: {files[1].read_text()[-3000:]}")
        return Finished(process.exitcode, *(file.read_text() for file in files))


class Running:
    """A script or a torchrun agent that runs; stdout and stderr come together.

    Attributes:
        pid: process id: that of the agent where torchrun runs.
    """

    def __init__(self, process: Any, output: Connection) -> None:
        self.pid: int = process.pid
        self._process, self._output = process, output
        self._text = b""

    def read_until(self, found: Callable[[str], bool]) -> str:
        """The output until the first line of which `found` is true.

        Raises:
            AssertionError: The output ended without it.
        """
        printed = ""
        while True:
            line, end, rest = self._text.partition(b"\n")
            if end:
                self._text = rest
                printed += line.decode(errors="backslashreplace") + "\n"
                if found(printed.splitlines()[-1]):
                    return printed
            elif not self._read():
                raise AssertionError(f"the line that was waited for did not come: {printed}")

    def finish(self) -> tuple[int, str]:
        """Exit status (negative: that of a signal) and the rest of the output."""
        while self._read():
            pass
        self._process.join(TIMEOUT)
        return self._process.exitcode, self._text.decode(errors="backslashreplace")

    def _read(self) -> bool:
        """Wait for more output; False at the end of the process, whatever its orphans may still write."""
        if self._output.fileno() in wait([self._output.fileno(), self._process.sentinel], TIMEOUT):
            read = os.read(self._output.fileno(), 1 << 16)
            self._text += read
            return bool(read)
        return False

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        """A process does not outlive a test that fails."""
        self._process.terminate()
        self._process.join()
        self._output.close()


def start(
    *command: str,
    torchrun: Sequence[str] | None = None,
    cwd: str | Path | None = None,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Running:
    """Start what `launch` runs, as one process or, with `torchrun`, by an agent with these arguments of torchrun."""
    reader, writer = CONTEXT.Pipe(duplex=False)
    arguments = (command, torchrun, str(cwd or Path.cwd()), _variables(environment), writer)
    process = CONTEXT.Process(target=_run_started, args=arguments)
    process.start()
    writer.close()
    return Running(process, reader)


def _variables(environment: Mapping[str, str]) -> dict[str, str]:
    plain = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "160"}
    return {**os.environ, **plain, **environment}


def _run_started(
    command: tuple[str, ...], torchrun: Sequence[str] | None, cwd: str, variables: dict[str, str], output: Connection
) -> None:
    _enter(cwd, variables, [output.fileno()] * 2)
    output.close()
    if torchrun is None:
        os._exit(_run(command))
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    def launch_forks(config: LaunchConfig, **_: object) -> Callable[..., object]:
        config.start_method = "fork"
        return lambda *_: elastic_launch(config, _run_worker)(command)

    run.elastic_launch = launch_forks  # torchrun, but its workers have their imports done
    try:
        run.run(run.parse_args([*torchrun, *command]))
    except ChildFailedError as error:
        sys.exit(f"torchrun: {error}")


def _run_worker(command: tuple[str, ...]) -> None:
    sys.stdout.write(f"<worker of rank {os.environ['RANK']}: process {os.getpid()}>\n")
    status = _run(command)
    if status:  # the agent waits for the return of what succeeds
        os._exit(status)


def _enter(cwd: str, variables: dict[str, str], descriptors: Sequence[int]) -> None:
    """Take over working folder, environment variables and the descriptors for stdout and stderr.

    The script's own child processes are forked, as outside the tests; the fork server would import everything again.
    """
    multiprocessing.set_start_method("fork", force=True)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    for number, descriptor in enumerate(descriptors, 1):
        os.dup2(descriptor, number)


def _free_port() -> int:
    """A port that nobody listens on, below those that the system gives to connections in the meantime."""
    while True:
        port = random.SystemRandom().randrange(15_000, 32_000)
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


def _run_ranks(
    command: tuple[str, ...],
    ranks: int,
    cwd: str,
    variables: dict[str, str],
    files: list[Path],
    before: Callable[[int], None] | None,
) -> None:
    _enter(cwd, variables, [os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for file in files])
    port = str(_free_port())
    running = set()
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            if ranks > 1:
                shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks)}
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks)}
                os.environ.update(shared | own)
            if before is not None:
                before(rank)
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
    if status < 0:  # a rank that a signal ended is this process's end as well
        os.kill(os.getpid(), -status)
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

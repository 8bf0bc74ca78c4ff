"""The processes of a run: starting, agreeing, adding gradients, and reporting the ones that were lost."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from minigpt4.common.cli import EXIT_CODE
from minigpt4.common.errors import ConfigError, MiniGPT4Error, ProcessLostError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

T = TypeVar("T")
logger = logging.getLogger(__name__)

TIMEOUT = timedelta(minutes=10)
"""A rank gives up after this time without an answer."""
ROLL_CALL = timedelta(seconds=5)
"""Time for the remaining ranks to find out which are missing."""
OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Environment variable that gives every attempt of a launch a store of its own, with the rendezvous backend c10d."""
LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|timed out|timeout|barrier", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """The ranks of a run, seen from one of them.

    Objects are exchanged through `control`, a process group on the CPU, so that doing so never waits for a device.

    Attributes:
        device: device of this rank.
        rank: rank of this process.
        world_size: number of ranks.
        accelerator: accelerate's object, which started the process groups.
        control: process group on the CPU; None for a single process.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1
    accelerator: Any = None
    control: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and logs."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """`values` summed over the ranks, in place and on their device, without waiting for the result."""
        if self.world_size > 1:
            import torch.distributed as dist

            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        if self.world_size == 1:
            return flag
        import torch
        import torch.distributed as dist

        # Called every few steps: one number takes a tenth of the time of gathered objects.
        found = torch.tensor(int(flag))
        with self.report_lost_ranks():
            dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self.control)
        return bool(found)

    def gather(self, value: T) -> list[T]:
        """The value of every rank, in order."""
        if self.world_size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world_size
        with self.report_lost_ranks():
            dist.all_gather_object(values, value, group=self.control)
        return values

    def run_on_main(self, make: Callable[[], T]) -> T:
        """What `make` returns on rank 0, on every rank.

        Raises:
            MiniGPT4Error: `make` raised it; the other ranks exit silently, so that it is shown once.
        """
        if self.world_size == 1:
            return make()
        import torch.distributed as dist

        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = make()
            except MiniGPT4Error as error:
                outcome[1] = error
        with self.report_lost_ranks():
            failed = [outcome[1] is not None]
            dist.broadcast_object_list(failed, src=0, group=self.control)
            if failed[0]:
                raise outcome[1] if self.is_main else SystemExit(EXIT_CODE)
            value = outcome[:1]
            dist.broadcast_object_list(value, src=0, group=self.control)
        result: T = value[0]
        return result

    def shutdown(self) -> None:
        """Wait for the other ranks and close the process groups, at the very end."""
        if self.world_size > 1:
            self.accelerator.end_training()

    @contextmanager
    def report_lost_ranks(self, where: Callable[[], str] = str) -> Iterator[None]:
        """Turn a collective that failed or timed out into an error that names this rank and the missing ones.

        Args:
            where: returns the position in the run, for the message ("step 12").

        Raises:
            ProcessLostError: Instead of torch's error.
        """
        try:
            yield
        except RuntimeError as error:
            if self.world_size == 1 or not LOST.search(str(error)):
                raise
            reason = str(error).strip().splitlines()[0]
            at = f" at {where()}" if where() else ""
            raise ProcessLostError(
                f"rank {self.rank} lost contact{at}: {self._missing()} ended or gave no answer within "
                f"{TIMEOUT.total_seconds() / 60:g} minutes; the cause is in that process's own message above "
                f"({reason})"
            ) from error

    def _missing(self) -> str:
        """The ranks that do not answer, as far as this one can see."""
        import torch.distributed as dist

        try:
            dist.monitored_barrier(group=self.control, timeout=ROLL_CALL, wait_all_ranks=True)
        except RuntimeError as error:
            named = re.search(r"Ranks? ([\d, ]+) failed", str(error))
            if named:
                return f"rank {named.group(1).strip()}"
        return "another process"


def start_processes(device: str = "auto") -> Processes:
    """Join the other processes that torchrun started, if any (NCCL on GPUs, gloo on the CPU).

    Args:
        device: auto, cpu or cuda.

    Raises:
        ConfigError: An unknown device, or no GPU for this process where one is asked for.
    """
    cuda = _use_cuda(device)
    if not cuda:
        from minigpt4.common.matmul import use_onednn_if_exact

        _share_cores()
        use_onednn_if_exact()
    _check_restart()
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    accelerator = Accelerator(
        mixed_precision="no", cpu=not cuda, kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)]
    )
    control = None
    if accelerator.num_processes > 1:
        import torch.distributed as dist

        # Shorter than NCCL's watchdog, which ends the process without an error of ours.
        control = dist.new_group(backend="gloo", timeout=TIMEOUT * 0.9)
    return Processes(
        device=accelerator.device,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        accelerator=accelerator,
        control=control,
    )


def restarts_allowed() -> bool:
    """Whether torchrun was told to restart failed workers (`--max-restarts`)."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS") or 0) > 0


def _check_restart() -> None:
    """Refuse to join a store that outlived its workers.

    torchrun's agent keeps one store for all attempts of a launch. After a restart it still holds the addresses of dead
    workers, and a worker that reads one cannot connect, or waits until the timeout (pytorch/pytorch#135712). The
    rendezvous backend c10d, which `--standalone` uses too, can be told not to; the default, static, cannot.
    """
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and int(os.environ.get("WORLD_SIZE") or 1) > 1
    if not shared or not restarts_allowed():
        return
    advice = f"set the environment variable {OWN_STORE}=1 and start torchrun with --standalone or --rdzv-backend=c10d"
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0) > 0:
        raise ConfigError(
            "torchrun restarted the workers with the rendezvous store of the failed attempt, on which they may hang; "
            f"{advice}, and run the same command again: it resumes"
        )
    logger.warning("a restart of failed workers (--max-restarts) will be refused here: %s", advice)


def _use_cuda(device: str) -> bool:
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"run.device: '{device}' should be auto, cpu or cuda")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cuda" and not found:
        raise ConfigError("run.device is cuda, but torch finds no GPU; set run.device=cpu, or check the driver")
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    if device != "cpu" and 0 < found < local:
        raise ConfigError(
            f"{local} processes were started, but there are {found} GPUs; "
            f"use --nproc-per-node {found} or run.device=cpu"
        )
    return device != "cpu" and found > 0


def _share_cores() -> None:
    """Divide the cores among the processes of this machine, unless OMP_NUM_THREADS is set."""
    local = os.environ.get("LOCAL_WORLD_SIZE")
    if local is None or os.environ.get("OMP_NUM_THREADS"):
        return
    import torch

    threads = max(1, available_cores() // int(local))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class GradientSum:
    """The gradients of a step's micro-batches, added in the order of their numbers.

    Slot s of a step is micro-batch s * world_size + r on rank r. After each slot every rank adds one part of the
    gradients, g0 + g1 + ... in that order, and at the end all parts go to all ranks. So the sum is the same to the last
    bit for any number of ranks that computes the same micro-batches. A step of n slots moves (n + 1) * (1 - 1 /
    world_size) times the bytes of the gradients; a ring all-reduce, which adds in an order of its own, moves twice.

    Args:
        parameters: trainable parameters; they become those of rank 0 on every rank.
        processes: ranks of the run.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], processes: Processes) -> None:
        import torch
        import torch.distributed as dist

        self._parameters = list(parameters)
        self._world_size = processes.world_size
        count = sum(parameter.numel() for parameter in self._parameters)
        share = -(-count // self._world_size)
        # Backward passes add to views of this buffer.
        self._flat = torch.zeros(share * self._world_size, device=processes.device)
        sizes = [parameter.numel() for parameter in self._parameters]
        views = self._flat[:count].split(sizes)
        self._views = [view.view_as(p) for view, p in zip(views, self._parameters, strict=True)]
        if self._world_size > 1:
            self._received = torch.empty_like(self._flat)
            self._share = torch.empty(share, device=processes.device)
            for parameter in self._parameters:
                dist.broadcast(parameter.data, src=0)

    def start(self) -> None:
        """Begin a step: backward passes from now on add to its gradients."""
        # Not 0.0: only with -0.0 is each sum the bits of the other addend.
        self._flat.fill_(-0.0)
        if self._world_size > 1:
            self._share.fill_(-0.0)
        for parameter, view in zip(self._parameters, self._views, strict=True):
            parameter.grad = view

    def end_slot(self) -> None:
        """Add the gradients of this slot's micro-batches; every rank must call it after its backward pass."""
        if self._world_size == 1:
            return  # the next backward pass adds to them
        import torch.distributed as dist

        dist.all_to_all_single(self._received, self._flat)
        for part in self._received.view(self._world_size, -1):
            self._share += part
        self._flat.fill_(-0.0)

    def finish(self) -> None:
        """Put the sum into every parameter's `grad`, on every rank."""
        if self._world_size > 1:
            import torch.distributed as dist

            dist.all_gather_into_tensor(self._flat, self._share)

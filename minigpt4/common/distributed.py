"""The processes of a run: starting, agreeing, sharing gradients, and reporting the ones that were lost."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from minigpt4.common.cli import EXIT_CODE
from minigpt4.common.errors import ConfigError, MiniGPT4Error, ProcessLostError
from minigpt4.common.rendezvous import join_attempt, store_outlives_workers

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")

TIMEOUT = timedelta(minutes=10)
"""After so long without an answer a process gives up."""
ROLL_CALL = timedelta(seconds=5)
"""How long the survivors wait for each other to find out who is missing."""
LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|timed out|timeout|barrier", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """The processes of a run, seen from one of them.

    What they agree on travels through `control`, a group on the CPU, so that agreeing never waits for a device.

    Attributes:
        device: This process's own.
        rank: Its number, from 0.
        world_size: How many there are.
        accelerator: Accelerate's object, which wraps modules for DDP.
        control: Process group on the CPU; None for a single process.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1
    accelerator: Any = None
    control: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """`values` added up over the processes, in place and on their device; nothing waits for the result."""
        if self.world_size > 1:
            import torch.distributed as dist

            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.world_size == 1:
            return flag
        import torch
        import torch.distributed as dist

        # Asked every few steps: one number takes a tenth of the time of objects gathered from everyone.
        found = torch.tensor(int(flag))
        with self.watch():
            dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self.control)
        return bool(found)

    def gather(self, value: T) -> list[T]:
        """Everyone's value, by rank."""
        if self.world_size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world_size
        with self.watch():
            dist.all_gather_object(values, value, group=self.control)
        return values

    def from_main(self, make: Callable[[], T]) -> T:
        """What `make` returns in the main process, in every process.

        Raises:
            MiniGPT4Error: `make` raised it; the other processes end quietly, so that it is shown once.
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
        with self.watch():
            failed = [outcome[1] is not None]
            dist.broadcast_object_list(failed, src=0, group=self.control)
            if failed[0]:
                raise outcome[1] if self.is_main else SystemExit(EXIT_CODE)
            value = outcome[:1]
            dist.broadcast_object_list(value, src=0, group=self.control)
        result: T = value[0]
        return result

    def leave(self) -> None:
        """Take leave of the other processes, at the very end."""
        if self.world_size > 1:
            self.accelerator.end_training()

    @contextmanager
    def watch(self, where: Callable[[], str] = str) -> Iterator[None]:
        """Turn a collective that failed or timed out into an error that names this process and the missing ones.

        Args:
            where: Says what is going on, for the message ("step 12").

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
                f"{TIMEOUT.total_seconds() / 60:g} minutes; the cause stands in that process's own message above "
                f"({reason})"
            ) from error

    def _missing(self) -> str:
        """Call the roll: which processes do not answer, as far as this one can see."""
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
        from minigpt4.common.matmul import use_onednn_where_exact

        _share_cores()
        use_onednn_where_exact()
    if store_outlives_workers():
        join_attempt("nccl" if cuda else "gloo", TIMEOUT)
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    accelerator = Accelerator(
        mixed_precision="no", cpu=not cuda, kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)]
    )
    control = None
    if accelerator.num_processes > 1:
        import torch.distributed as dist

        # A little more impatient than NCCL's watchdog, which ends the process without an error of ours.
        control = dist.new_group(backend="gloo", timeout=TIMEOUT * 0.9)
    return Processes(
        device=accelerator.device,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        accelerator=accelerator,
        control=control,
    )


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
    """Divide the cores among the processes on this machine, unless OMP_NUM_THREADS says how."""
    local = os.environ.get("LOCAL_WORLD_SIZE")
    if local is None or os.environ.get("OMP_NUM_THREADS"):
        return
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // int(local))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


class SharedGradients:
    """Wraps the trainable children of a model in DDP, once; the frozen ones never enter it.

    With a single process nothing is wrapped. Parameter names change while the wrappers are in place, so files are
    read and written inside `unwrapped`.

    Args:
        model: Its direct children that hold a trainable parameter are wrapped, in place.
        processes: Of the run.
    """

    def __init__(self, model: nn.Module, processes: Processes) -> None:
        self.model = model
        self.parts = {
            name: child
            for name, child in model.named_children()
            if any(parameter.requires_grad for parameter in child.parameters())
        }
        self.wrapped: dict[str, Any] = {}
        if processes.world_size > 1:
            self.wrapped = {name: processes.accelerator.prepare_model(part) for name, part in self.parts.items()}
        self._place(self.wrapped)

    def _place(self, modules: dict[str, Any]) -> None:
        for name, module in modules.items():
            setattr(self.model, name, module)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backward passes inside add to the gradients of this process only (all micro-batches but the last)."""
        with ExitStack() as stack:
            for module in self.wrapped.values():
                stack.enter_context(module.no_sync())
            yield

    @contextmanager
    def unwrapped(self) -> Iterator[None]:
        """The model as it was built, for saving, loading and validation."""
        self._place(self.parts)
        try:
            yield
        finally:
            self._place(self.wrapped)

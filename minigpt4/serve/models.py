"""The models of a server, loaded in a thread of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from minigpt4.api import LoadedModel, find_device, from_config
from minigpt4.common.schema import Config

Result = TypeVar("Result")


def load_models(cfg: Config, checkpoints: Sequence[str], gpu_id: int | None) -> list[LoadedModel]:
    """A model for each checkpoint; the frozen parts are loaded once.

    Args:
        cfg: all settings.
        checkpoints: files with a projection each; empty: the one of `model.ckpt`.
        gpu_id: number of the GPU; None: the first, or the CPU.

    Raises:
        MiniGPT4Error: A checkpoint or the GPU cannot be used.
    """

    def load() -> list[LoadedModel]:
        device = "auto" if gpu_id is None else find_device(f"cuda:{gpu_id}", "--gpu-id")
        first = from_config(cfg, checkpoints[0] if checkpoints else None, device=device)
        return [first, *(first.with_projection(path) for path in checkpoints[1:])]

    return in_own_thread(load)


def in_own_thread(work: Callable[[], Result]) -> Result:
    """The result of something that is done in a thread which ends with it.

    Each thread that computes keeps OpenMP's threads, as many as there are cores. Where two threads of a process have
    them, OpenMP puts those that wait to sleep at once, and the small products of a decode step take twice as long. So
    what a server computes outside of its engine's thread leaves no thread behind.

    Args:
        work: what to do.

    Raises:
        BaseException: What `work` raises.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # raised again by the caller
            future.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    return future.result()

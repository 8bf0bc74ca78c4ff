"""Joining the other processes of this attempt, and not the traces of an earlier one.

torchrun's agent keeps one store for all attempts of a launch (torch 2.5 to 2.15 at least). After a restart the
addresses that dead processes left in it are still there, and whoever reads one before it is replaced cannot connect, or
waits for ever (https://github.com/pytorch/pytorch/issues/135712). So the processes first agree on a name for their
attempt, which nobody had before, and keep everything else under it.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from minigpt4.common.errors import ProcessLostError

PAUSE = 0.02
"""Seconds between two looks into the store."""


def store_outlives_workers() -> bool:
    """Whether several processes meet in a store that torchrun's agent keeps over restarts."""
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return shared and int(os.environ.get("WORLD_SIZE") or 1) > 1


def join_attempt(backend: str, timeout: timedelta) -> None:
    """Start torch's default process group in a part of the store that this attempt has for itself.

    Args:
        backend: nccl or gloo.
        timeout: Of its collectives, and of the meeting.

    Raises:
        ProcessLostError: The others did not come.
    """
    import torch.distributed as dist

    store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
    name = agree_on_name(store, rank, world_size, timeout)
    dist.init_process_group(
        backend, store=dist.PrefixStore(name, store), rank=rank, world_size=world_size, timeout=timeout
    )


def agree_on_name(store: Any, rank: int, world_size: int, timeout: timedelta) -> str:
    """A name that all processes of this attempt have, and no earlier one had.

    Each puts a word of its own into the store; the first process answers with the name and all the words it sees, until
    everyone has found his own among them. Words and answers of earlier attempts are thus passed over.

    Args:
        store: Of torch; what earlier attempts wrote may still be in it.
        rank: Of this process.
        world_size: How many there are.
        timeout: For the others to come.

    Raises:
        ProcessLostError: They did not.
    """
    own = uuid.uuid4().hex
    if rank == 0:
        words = [f"word/{other}" for other in range(1, world_size)]
        seen: list[bytes] = []
        for _ in _looks(timeout):
            if store.check(words) and (found := store.multi_get(words)) != seen:
                seen = found
                store.set("answer", json.dumps([own, *(word.decode() for word in seen)]))
            if store.check([f"{own}/{other}" for other in range(1, world_size)]):
                return own
    store.set(f"word/{rank}", own)
    for _ in _looks(timeout):
        answer = json.loads(store.get("answer")) if store.check(["answer"]) else []
        if rank < len(answer) and answer[rank] == own:
            store.set(f"{answer[0]}/{rank}", "")
            return str(answer[0])
    raise AssertionError("the looks end with an error")


def _looks(timeout: timedelta) -> Iterator[None]:
    """Moments to look into the store, until the time is over."""
    end = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < end:
        yield
        time.sleep(PAUSE)
    raise ProcessLostError(
        f"the other processes did not come within {timeout.total_seconds() / 60:g} minutes; see their own "
        "messages above, and check that every machine runs the same torchrun command"
    )

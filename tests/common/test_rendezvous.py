"""Processes of an attempt agree on a name of its own, whatever earlier attempts left behind."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from minigpt4.common.errors import ProcessLostError
from minigpt4.common.rendezvous import agree_on_name, store_outlives_workers

SOON = timedelta(seconds=20)


def attempt(store: HashStore, world_size: int, late: int) -> list[str]:
    """The names that the processes of an attempt come to; one of them comes late."""

    def join(rank: int) -> str:
        time.sleep(0.2 * (rank == late))
        return agree_on_name(store, rank, world_size, SOON)

    with ThreadPoolExecutor(world_size) as threads:
        return list(threads.map(join, range(world_size)))


@pytest.mark.parametrize("late", [0, 2])
def test_every_attempt_has_a_name_of_its_own(late: int) -> None:
    store = HashStore()
    names = [attempt(store, 3, late) for _ in range(3)]
    assert all(len(set(name)) == 1 for name in names)
    assert len({name[0] for name in names}) == 3
    assert len(set(attempt(store, 2, 1))) == 1  # one machine fewer


def test_a_process_that_never_comes_is_an_error() -> None:
    store = HashStore()
    store.set("word/1", "of an earlier attempt")
    store.set("answer", json.dumps(["earlier", "of an earlier attempt"]))
    store.set("earlier/1", "")
    for rank in (0, 1):
        with pytest.raises(ProcessLostError, match=r"did not come within 0\.0"):
            agree_on_name(store, rank, 2, timedelta(seconds=0.3))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TORCHELASTIC_USE_AGENT_STORE": "True", "WORLD_SIZE": "2"}, True),
        ({"TORCHELASTIC_USE_AGENT_STORE": "False", "WORLD_SIZE": "2"}, False),
        ({"TORCHELASTIC_USE_AGENT_STORE": "True", "WORLD_SIZE": "1"}, False),
        ({}, False),
    ],
)
def test_only_a_store_that_stays_needs_a_name(
    environment: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TORCHELASTIC_USE_AGENT_STORE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert store_outlives_workers() is expected

"""What one process does by itself; runs of several are in tests/runners."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import pytest
import torch
from torch import nn

from minigpt4.common import distributed
from minigpt4.common.distributed import (
    OWN_STORE,
    GradientSum,
    Processes,
    available_cores,
    restarts_allowed,
    start_processes,
)
from minigpt4.common.errors import ConfigError, ProcessLostError

CPU = torch.device("cpu")
ALONE = Processes(device=CPU)
LAUNCHER = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "OMP_NUM_THREADS")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*LAUNCHER, *(name for name in os.environ if name.startswith("TORCHELASTIC"))]:
        monkeypatch.delenv(name, raising=False)


def fail(message: str) -> Callable[[], None]:
    def raise_() -> None:
        raise RuntimeError(message)

    return raise_


class TestAlone:
    def test_collectives_return_what_they_are_given(self) -> None:
        values = torch.tensor([1.0, 2.0])
        assert ALONE.sum(values) is values and values.tolist() == [1, 2]
        assert ALONE.any(True) is True and ALONE.any(False) is False
        assert ALONE.gather("a") == ["a"]
        assert ALONE.run_on_main(lambda: 3) == 3
        assert ALONE.is_main
        ALONE.shutdown()

    def test_errors_pass_unchanged(self) -> None:
        with pytest.raises(RuntimeError, match="connection reset"), ALONE.report_lost_ranks():
            fail("connection reset by peer")()
        with pytest.raises(ConfigError, match="no"):
            ALONE.run_on_main(lambda: (_ for _ in ()).throw(ConfigError("no")))

    def test_gradients_are_those_of_plain_backward_passes(self) -> None:
        used, unused = nn.Linear(3, 2), nn.Linear(2, 2)
        gradients = GradientSum([*used.parameters(), *unused.parameters()], ALONE)
        slots = torch.randn(3, 5, 3)
        slots[..., 1] = 0.0
        for _ in range(2):  # the second step begins with nothing of the first
            gradients.start()
            for slot in slots:
                (-used(slot)).sum().backward()
                gradients.end_slot()
            gradients.finish()
        found = [parameter.grad for parameter in used.parameters()]
        used.zero_grad()
        for slot in slots:
            (-used(slot)).sum().backward()
        for parameter, gradient in zip(used.parameters(), found, strict=True):
            assert parameter.grad is not None and gradient is not None
            assert torch.equal(parameter.grad.view(torch.int32), gradient.view(torch.int32))  # zeros with their signs
        assert all(p.grad is not None and not p.grad.any() for p in unused.parameters())


class TestLostRanks:
    def test_a_lost_connection_names_rank_place_and_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pair = Processes(device=CPU, rank=1, world_size=3)
        message = "[Rank 0]: Ranks 0, 2 failed to pass monitoredBarrier in 5000 ms"
        monkeypatch.setattr("torch.distributed.monitored_barrier", lambda **_: fail(message)())
        with (
            pytest.raises(
                ProcessLostError, match=r"rank 1 lost contact at step 12: rank 0, 2 ended .*\(gloo: closed\)"
            ),
            pair.report_lost_ranks(lambda: "step 12"),
        ):
            fail("gloo: closed\nmore")()

    def test_other_errors_pass_unchanged(self) -> None:
        with (
            pytest.raises(RuntimeError, match="shape") as caught,
            Processes(device=CPU, world_size=2).report_lost_ranks(),
        ):
            fail("shape mismatch")()
        assert not isinstance(caught.value, ProcessLostError)


class TestRestarts:
    @pytest.fixture
    def torchrun(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
        def start(restarts: int, *, allowed: int = 3, shared: bool = True, world_size: int = 2) -> None:
            monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", str(allowed))
            monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))
            monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", str(shared))
            monkeypatch.setenv("WORLD_SIZE", str(world_size))

        return start

    def test_they_are_allowed_by_torchrun(self, torchrun: Callable[..., None]) -> None:
        assert not restarts_allowed()
        torchrun(0, allowed=0)
        assert not restarts_allowed()
        torchrun(0)
        assert restarts_allowed()

    def test_the_store_of_a_failed_attempt_is_refused(self, torchrun: Callable[..., None]) -> None:
        torchrun(1)
        with pytest.raises(
            ConfigError, match=f"{OWN_STORE}=1 and start torchrun .* run the same command again: it resumes"
        ):
            distributed._check_restart()

    def test_the_first_attempt_warns(self, torchrun: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
        torchrun(0)
        with caplog.at_level(logging.WARNING):
            distributed._check_restart()
        assert f"{OWN_STORE}=1" in caplog.text

    @pytest.mark.parametrize("safe", [{"shared": False}, {"world_size": 1}, {"allowed": 0}])
    def test_a_store_of_its_own_is_silent(
        self, torchrun: Callable[..., None], caplog: pytest.LogCaptureFixture, safe: dict[str, int]
    ) -> None:
        torchrun(1, **safe)
        distributed._check_restart()
        assert not caplog.records


class TestDevices:
    def test_an_unknown_device(self) -> None:
        with pytest.raises(ConfigError, match=r"run\.device: 'gpu' should be auto, cpu or cuda"):
            start_processes("gpu")

    def test_no_gpu_where_one_is_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(ConfigError, match=r"set run\.device=cpu"):
            start_processes("cuda")

    def test_more_processes_than_gpus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
        with pytest.raises(ConfigError, match="4 processes were started, but there are 2 GPUs; use --nproc-per-node 2"):
            start_processes()


class TestCores:
    @pytest.fixture
    def threads(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        found: list[int] = []
        monkeypatch.setattr(torch, "set_num_threads", found.append)
        monkeypatch.setattr(distributed, "available_cores", lambda: 8)
        return found

    @pytest.mark.parametrize(("processes", "expected"), [("1", 8), ("3", 2), ("20", 1)])
    def test_the_processes_of_a_machine_share_them(
        self, monkeypatch: pytest.MonkeyPatch, threads: list[int], processes: str, expected: int
    ) -> None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        monkeypatch.setenv("OMP_NUM_THREADS", "")  # restored at the end
        distributed._share_cores()
        assert threads == [expected] and os.environ["OMP_NUM_THREADS"] == str(expected)

    def test_a_users_choice_stays(self, monkeypatch: pytest.MonkeyPatch, threads: list[int]) -> None:
        distributed._share_cores()
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        monkeypatch.setenv("OMP_NUM_THREADS", "5")
        distributed._share_cores()
        assert threads == []

    def test_only_those_that_this_process_may_use_count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
        assert available_cores() == 2
        monkeypatch.delattr(os, "sched_getaffinity")
        monkeypatch.setattr(os, "cpu_count", lambda: None)
        assert available_cores() == 1

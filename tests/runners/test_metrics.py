"""Sums of an epoch, timing, throughput, and the trackers that are there."""

from __future__ import annotations

import math

import pytest
import torch

from minigpt4.common.distributed import Processes
from minigpt4.common.errors import ConfigError
from minigpt4.models.flops import Work
from minigpt4.runners import metrics
from minigpt4.runners.metrics import EpochMeter, PeakFlops, RunTiming, StepClock, StepWindow, Throughput, check_trackers
from minigpt4.tasks.training import StepLoss


def filled_window(losses: list[float]) -> StepWindow:
    """Steps of two target tokens each, the second of them skipped."""
    window = StepWindow()
    for step, loss in enumerate(losses):
        scalars = StepLoss(torch.tensor(2 * loss, dtype=torch.float64), torch.tensor(2.0))
        finite = torch.tensor(True)
        window.add(step, scalars, torch.tensor(0.5), torch.tensor(step == 1), finite, [f"image{step}"], Work(samples=1))
    return window


def test_a_window_brings_its_steps_to_the_host_once() -> None:
    alone = Processes(device=torch.device("cpu"))
    window = filled_window([3.0, math.nan, 1.0])
    records, work = window.flush(alone)
    assert work == Work(samples=3)
    assert [record.loss for record in records[::2]] == [3.0, 1.0] and not records[1].finite
    assert [record.skipped for record in records] == [record.bad_here for record in records] == [False, True, False]
    assert [record.image_ids for record in records] == [["image0"], ["image1"], ["image2"]]
    assert window.flush(alone) == ([], Work())


def test_a_meter_leaves_skipped_steps_out_and_returns_from_a_checkpoint() -> None:
    records, work = filled_window([3.0, math.nan, 1.0]).flush(Processes(device=torch.device("cpu")))
    once, resumed = EpochMeter(), EpochMeter()
    assert once.loss is None
    once.add(records, work)
    assert (once.loss, once.steps, once.skipped_steps, once.work) == (2.0, 3, 1, Work(samples=3))
    half = EpochMeter()
    half.add(records[:2], Work(samples=2))
    resumed.load_state_dict(half.state_dict())
    resumed.add(records[2:], Work(samples=1))
    assert resumed == once


def test_a_clock_leaves_a_validation_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    clock = StepClock()
    now[0] = 10.0  # a validation
    clock.start()
    clock.waited(1.0)
    now[0] = 14.0
    assert clock.stop(2) == 4.0
    assert clock.lap() == (2, 2.0, 0.5)
    assert clock.lap() == (0, 0.0, 0.0)


def test_throughput_is_work_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    peak = fixed_peak(monkeypatch, 1e10)
    speed = Throughput.of(Work(samples=8, tokens=100, padded_tokens=120, flops=6e9), seconds=2.0, peak=peak)
    assert str(speed) == "4 samples/s, 50 tokens/s (60 with padding), MFU 0.30"


def test_utilisation_is_never_above_one(monkeypatch: pytest.MonkeyPatch) -> None:
    peak = fixed_peak(monkeypatch, 1e9, 4e9, 2e9)  # other programs were running at first
    work = Work(flops=3e9)
    assert Throughput.of(work, 1.0, peak).mfu == 1.0
    assert peak.flops == 3e9  # what was reached is possible
    peak.measure()
    assert Throughput.of(work, 1.0, peak).mfu == 0.75
    peak.measure()
    assert Throughput.of(work, 1.0, peak).mfu == 0.75


def test_the_fastest_product_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([9.0, 3.0, 4.0, 5.0, 9.0])
    monkeypatch.setattr(metrics, "timed", lambda work, device: next(seconds))
    assert metrics.matmul_peak(torch.float32, torch.device("cpu")) == 2 * 256**3 / 3.0


def fixed_peak(monkeypatch: pytest.MonkeyPatch, *measured: float) -> PeakFlops:
    """The peak of a device whose products reach `measured`, one after the other."""
    values = iter(measured)
    monkeypatch.setattr(metrics, "matmul_peak", lambda dtype, device: next(values))
    peak = PeakFlops(torch.float32, Processes(device=torch.device("cpu")))
    peak.measure()
    return peak


def test_the_time_left_is_of_the_run_and_leaves_the_first_step_out() -> None:
    timing = RunTiming(steps_per_epoch=10, epochs=3)
    timing.count_steps(1, 300.0)  # compiles
    assert timing.seconds_left(1) is None and timing.note(1) == ""
    timing.count_steps(4, 2.0)
    assert timing.seconds_left(5) == 25 * 2.0
    timing.count_steps(5, 2.0)
    timing.count_epoch_end(7.0)
    assert timing.seconds_left(10) == 20 * 2.0 + 3 * 7.0  # the end of the epoch is still to come
    assert timing.seconds_left(11) == 19 * 2.0 + 2 * 7.0
    for _ in range(8):
        timing.count_steps(1, 4.0)  # a slower machine: the latest steps count most
    assert timing.seconds_left(29) == pytest.approx(4.0 + 7.0, rel=0.05)
    assert timing.note(29) == "run: 0:00:11 left"


def test_trackers_are_known_and_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="did you mean 'tensorboard'"):
        check_trackers(["tensorbord"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        check_trackers(["wandb"])

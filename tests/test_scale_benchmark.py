"""The formulas of `benchmarks.scale` beside simulations and figures worked out by hand."""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from dataclasses import replace
from math import inf, pi, sqrt
from pathlib import Path

import numpy as np
import pytest

from benchmarks import scale
from benchmarks.scaling import measured
from benchmarks.scaling.allreduce import FLOAT32, Link, projection_parameters, ring_seconds, tree_seconds
from benchmarks.scaling.forecast import Assumptions, all_reduce_seconds, efficiency, forecast, processes_until
from benchmarks.scaling.loading import (
    Source,
    busiest_file,
    cores_needed,
    distinct,
    files_opened,
    shards_opened,
    steps_of_a_group,
)
from benchmarks.scaling.local_reduce import expected, link_of, measure_all_reduce
from benchmarks.scaling.measured import make_order
from benchmarks.scaling.waiting import exponential_excess, normal_excess
from minigpt4.datasets.sampler import StepSampler
from minigpt4.datasets.shards.dataset import OPEN_SHARDS

LINK = Link(latency=3e-6, bandwidth=2e9)
MANY = (2, 3, 4, 5, 8, 13, 64, 1000)


class TestAllReduce:
    @pytest.mark.parametrize(("width", "parameters"), [(4096, 3_149_824), (5120, 3_937_280)])
    def test_what_is_trained(self, width: int, parameters: int) -> None:
        assert projection_parameters(width) == parameters

    @pytest.mark.parametrize("processes", [1, 2, 3, 5, 8])
    def test_ring_is_what_its_messages_take(self, processes: int) -> None:
        """Every process passes a chunk to its right-hand neighbour in each round, all at the same time."""
        chunk = 7
        held = np.random.default_rng(0).integers(100, size=(processes, processes, chunk)).astype(np.float32)
        total, seconds = held.sum(axis=0), 0.0
        for phase, start in (("add", 0), ("replace", 1)):
            for round_ in range(processes - 1):
                sent = {r: held[r, (r + start - round_) % processes].copy() for r in range(processes)}
                for rank, message in sent.items():
                    place = (rank + start - round_) % processes
                    neighbour = held[(rank + 1) % processes]
                    neighbour[place] = neighbour[place] + message if phase == "add" else message
                seconds += LINK.latency + max(message.nbytes for message in sent.values()) / LINK.bandwidth
        assert (held == total).all()
        assert ring_seconds(processes, total.nbytes, LINK) == pytest.approx(seconds, rel=1e-12)

    @pytest.mark.parametrize("processes", MANY)
    def test_tree_is_as_deep_and_as_busy_as_two_trees(self, processes: int) -> None:
        """The trees that NCCL builds: the second is the first from the other end, or shifted by one."""
        first = {rank: tree_parent(rank, processes) for rank in range(processes)}
        if processes % 2:
            second = {(r + 1) % processes: None if p is None else (p + 1) % processes for r, p in first.items()}
        else:
            second = {processes - 1 - r: None if p is None else processes - 1 - p for r, p in first.items()}
        size, received, depths = 1000.0, dict.fromkeys(range(processes), 0.0), []
        for parents in (first, second):
            for rank, parent in parents.items():
                depths.append(depth(rank, parents))
                if parent is not None:
                    received[parent] += size / 2  # on the way up
                    received[rank] += size / 2  # on the way down
        assert tree_seconds(processes, size, Link(1.0, inf)) == 2 * max(depths)
        busiest = tree_seconds(processes, size, Link(0.0, 1.0))
        assert busiest == (max(received.values()) if processes > 4 else 2 * size)
        assert max(received.values()) <= 2 * size

    def test_nothing_is_shared_by_one(self) -> None:
        assert ring_seconds(1, 1e6, LINK) == tree_seconds(1, 1e6, LINK) == 0

    def test_the_quicker_one_is_taken(self) -> None:
        assert all_reduce_seconds(1000, 4, LINK) == tree_seconds(1000, 4, LINK) < ring_seconds(1000, 4, LINK)
        assert all_reduce_seconds(2, 1e9, LINK) == ring_seconds(2, 1e9, LINK) < tree_seconds(2, 1e9, LINK)


def tree_parent(rank: int, processes: int) -> int | None:
    """In the in-order binary tree that NCCL builds (ncclGetBtree)."""
    if rank == 0:
        return None
    bit = rank & -rank
    up = (rank ^ bit) | (bit << 1)
    return up if up < processes else rank ^ bit


def depth(rank: int, parents: dict[int, int | None]) -> int:
    parent = parents[rank]
    return 0 if parent is None else 1 + depth(parent, parents)


class TestWaiting:
    def test_known_values(self) -> None:
        assert normal_excess(1) == pytest.approx(0, abs=1e-12)
        assert normal_excess(2) == pytest.approx(1 / sqrt(pi), rel=1e-6)
        assert normal_excess(3) == pytest.approx(1.5 / sqrt(pi), rel=1e-6)
        assert exponential_excess(1) == 0
        assert exponential_excess(3) == pytest.approx(1 / 2 + 1 / 3)

    @pytest.mark.parametrize("processes", [2, 16, 256, 1000])
    def test_drawn_step_times_agree(self, processes: int) -> None:
        draw = np.random.default_rng(processes)
        for excess, drawn in (
            (normal_excess, draw.normal(size=(4000, processes))),
            (exponential_excess, draw.exponential(size=(4000, processes)) - 1),
        ):
            largest = drawn.max(axis=1)
            assert excess(processes) == pytest.approx(largest.mean(), abs=4 * largest.std() / sqrt(len(largest)))


class TestLoading:
    def test_by_hand(self) -> None:
        assert cores_needed(64, step_seconds=2.0, decoded_per_second=1600) == 0.02
        assert distinct(1, 16) == pytest.approx(1)
        assert distinct(2, 2) == pytest.approx(1.5)
        half = Source(pairs=10**6, per_shard=10_000, share=0.5)
        assert steps_of_a_group(half, window=16, step_size=64_000) == 5
        # A worker's batch of 2 brings one sample from 2 shards; a group lasts 4 steps, one batch for each of 4 workers.
        few = Source(pairs=1000, per_shard=40, share=0.5)
        assert steps_of_a_group(few, window=2, step_size=40) == 4
        assert shards_opened(few, window=2, batch_size=2, processes=20, workers=4) == pytest.approx(1)
        assert files_opened([few, few], window=2, batch_size=2, processes=20, workers=4) == pytest.approx(20 * 2 * 2)
        # One worker takes all four batches: 4 samples from 2 shards, 1.875 different ones in four steps.
        assert shards_opened(few, window=2, batch_size=2, processes=20, workers=1) == pytest.approx(1.875 / 4)
        assert busiest_file([replace(half, share=0.25), replace(half, share=0.75)], 3, 400.0) == 100.0

    @pytest.mark.parametrize("workers", [1, 4])
    @pytest.mark.parametrize("processes", [1, 8, 40, 100, 400])
    def test_the_real_order_opens_as_many(self, processes: int, workers: int) -> None:
        sources = [Source(600_000, 2000, 0.9), Source(200_000, 2000, 0.1)]
        steps = max(60, 600_000 // (64 * processes))
        opened = drawn_openings(sources, processes, workers, window=16, steps=min(steps, 4000))
        calculated = sum(shards_opened(source, 16, 64, processes, workers) for source in sources)
        assert calculated == pytest.approx(opened, rel=0.12)


def drawn_openings(sources: list[Source], processes: int, workers: int, window: int, steps: int) -> float:
    """Shards that one process's workers open a step, each keeping its latest open, as `ShardRecords` does."""
    order = make_order(sources, window)
    kept: list[list[OrderedDict[int, None]]] = [[OrderedDict() for _ in sources] for _ in range(workers)]
    opened = 0
    sampler = StepSampler(order, batch_size=64, world_size=processes, rank=processes // 2, stop_step=steps)
    for number, keys in enumerate(sampler):
        for key in keys:
            shards = kept[number % workers][key.dataset]
            shard = key.record // sources[key.dataset].per_shard
            if shard not in shards:
                opened += 1
                if len(shards) == OPEN_SHARDS:
                    shards.popitem(last=False)
            shards[shard] = None
            shards.move_to_end(shard)
    return opened / steps


@pytest.fixture
def assumed() -> Assumptions:
    """Round numbers; nobody is ever late."""
    return Assumptions(
        step_seconds=2.0,
        batch_size=100,
        width=4096,
        spread=0.0,
        distribution="normal",
        inside=Link(0.0, 4e9),
        between=Link(1e-3, 1e9),
        control=Link(0.01, inf),
        per_node=8,
        workers=4,
        decoded_per_second=1000.0,
        pair_bytes=20_000.0,
        file_bytes_per_second=1e9,
        opens_per_second=1e9,
        window=16,
        sources=[Source(10**9, 10_000, 1.0)],
    )


class TestForecast:
    def test_one_process_waits_for_nobody(self, assumed: Assumptions) -> None:
        one = forecast(1, replace(assumed, spread=0.5))
        assert (one.waiting, one.gradients, one.agreeing) == (0, 0, 0)
        assert one.step == one.devices == 2.0 and one.limit == "devices"
        assert efficiency(1, assumed) == 1

    def test_a_node_by_hand(self, assumed: Assumptions) -> None:
        found = forecast(4, assumed)
        gradient = FLOAT32 * 3_149_824
        # Two all-reduces without latency: 1.5 times the bytes at 4 GB/s.
        assert found.gradients == pytest.approx(1.5 * (gradient + FLOAT32) / 4e9)
        assert found.agreeing == pytest.approx(6 * 0.01 / 5)
        assert found.loader == 100 / 4000
        assert found.bytes_read == pytest.approx(400 * 20_000 / 1e9)
        assert found.opens == pytest.approx(files_opened(assumed.sources, 16, 100, 4, 4) / 1e9)
        assert found.step == found.training == pytest.approx(2 + found.gradients + found.agreeing)

    def test_beyond_a_node_the_network_counts(self, assumed: Assumptions) -> None:
        gradient = FLOAT32 * 3_149_824
        assert forecast(8, assumed).gradients < 0.01
        # Trees: 8 latencies, and twice the bytes at 1 GB/s; once for the gradient and once for the number of tokens.
        assert forecast(16, assumed).gradients == pytest.approx(2 * 8e-3 + 2 * (gradient + FLOAT32) / 1e9, rel=1e-6)

    def test_waiting_grows_with_spread_and_distribution(self, assumed: Assumptions) -> None:
        late = replace(assumed, spread=0.05)
        assert forecast(3, late).waiting == pytest.approx(2.0 * 0.05 * 1.5 / sqrt(pi), rel=1e-6)
        assert forecast(3, replace(late, distribution="exponential")).waiting == pytest.approx(0.1 * (1 / 2 + 1 / 3))
        assert forecast(3, late).loss == "waiting"

    @pytest.mark.parametrize(
        ("change", "limit", "seconds"),
        [
            ({"decoded_per_second": 5.0}, "loader's cores", 100 / 20),
            ({"file_bytes_per_second": 1e6}, "bytes read", 8.0),
            ({"opens_per_second": 0.01}, "opening shards", None),
        ],
    )
    def test_a_supply_that_is_slower_sets_the_pace(
        self, assumed: Assumptions, change: dict[str, float], limit: str, seconds: float | None
    ) -> None:
        changed = replace(assumed, **change)
        found = forecast(4, changed)
        seconds = seconds or files_opened(assumed.sources, 16, 100, 4, 4) / 0.01
        assert found.limit == limit and found.loss == "supply" and found.step == pytest.approx(seconds)
        assert efficiency(4, changed) == pytest.approx(forecast(1, changed).step / seconds)

    def test_where_a_supply_begins_to_hold_up(self, assumed: Assumptions) -> None:
        never_asked = replace(assumed, control=Link(0.0, inf), between=assumed.inside)
        assert processes_until(never_asked, "loader's cores") is None
        # 2 MB a process and step at 1 GB/s: 2 s for a thousand, and the gradient takes a little longer.
        first = processes_until(never_asked, "bytes read")
        held_up = [
            n for n in range(990, 1030) if forecast(n, never_asked).bytes_read > forecast(n, never_asked).training
        ]
        assert first == held_up[0] > 1000


class TestLocal:
    def test_two_figures_give_the_link_back(self) -> None:
        numbers = 10**6
        for processes in (2, 4):
            small, large = (ring_seconds(processes, FLOAT32 * n, LINK) for n in (0, numbers))
            found = link_of({processes: {1: small, numbers: large}}, processes, numbers)
            assert found.latency == pytest.approx(LINK.latency) and found.bandwidth == pytest.approx(LINK.bandwidth)

    def test_sharing_divides_the_bandwidth(self) -> None:
        own, shared = expected(4, 10**6, Link(0.0, 2e9), sharing=2)
        assert own == pytest.approx(1.5 * 4e6 / 2e9) and shared == pytest.approx(2 * own)

    @pytest.mark.distributed
    @pytest.mark.slow
    def test_processes_are_measured(self) -> None:
        found = measure_all_reduce((2, 3), (1, 1000))
        assert {group: list(one) for group, one in found.items()} == {2: [1, 1000], 3: [1, 1000]}
        assert all(0 < seconds < 10 for one in found.values() for seconds in one.values())


def test_every_table_says_whether_it_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scale, "SAMPLED", 3)
    monkeypatch.setattr(measured, "PER_SHARD", 10)
    monkeypatch.setattr(scale, "local_collectives", lambda width: {"2": {"measured, ms": float(width)}})
    sizes = ["--pairs", "40000", "20000", "--per-shard", "1000", "--steps", "100", "--processes", "1", "1000"]
    monkeypatch.setattr(sys, "argv", ["scale", *sizes, "--decoded", "1234", "--out", str(tmp_path / "out.json")])
    scale.main()
    tables = json.loads((tmp_path / "out.json").read_text())["tables"]
    assert all(title.startswith(("MEASURED here: ", "CALCULATED: ")) for title in tables)
    printed = capsys.readouterr().out
    assert "decoded 1234" in printed and "machine: " in printed and "held up by: " in printed
    stage = next(rows for title, rows in tables.items() if title.startswith("CALCULATED: stage 1"))
    step = stage["1,000"]["step, s"]
    assert stage["1,000"]["pairs/s"] == pytest.approx(64_000 / step)
    assert stage["1,000"]["100 steps, h"] == pytest.approx(100 * step / 3600)
    assert stage["1"]["step, s"] == 1.8 and stage["1"]["efficiency"] == "100.0%"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--pairs", "40000"], "different numbers of datasets"), (["--per-shard", "99999999"], "more than a dataset has")],
)
def test_arguments_that_do_not_fit(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["scale", *arguments])
    with pytest.raises(SystemExit):
        scale.parse_arguments()
    assert message in capsys.readouterr().err

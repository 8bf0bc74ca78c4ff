"""The formulas of `benchmarks.scale` beside simulations and figures worked out by hand."""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from math import pi, sqrt
from pathlib import Path

import numpy as np
import pytest

from benchmarks import scale
from benchmarks.scale import expected_largest, list_samples, make_order, ring_seconds, shards_opened, tree_seconds
from minigpt4.datasets.shards.dataset import OPEN_SHARDS


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_a_ring_takes_the_time_of_its_messages(processes: int) -> None:
    """Each rank passes a chunk to its neighbour in every round, all at the same time."""
    latency, bandwidth = 3e-6, 2e9
    held = np.random.default_rng(0).integers(100, size=(processes, processes, 7)).astype(np.float32)
    total, seconds = held.sum(axis=0), 0.0
    for phase, start in (("add", 0), ("replace", 1)):
        for round_ in range(processes - 1):
            sent = {rank: held[rank, (rank + start - round_) % processes].copy() for rank in range(processes)}
            for rank, message in sent.items():
                place, neighbour = (rank + start - round_) % processes, held[(rank + 1) % processes]
                neighbour[place] = neighbour[place] + message if phase == "add" else message
            seconds += latency + max(message.nbytes for message in sent.values()) / bandwidth
    assert (held == total).all()
    assert ring_seconds(processes, total.nbytes, latency, bandwidth) == pytest.approx(seconds, rel=1e-12)


def test_a_tree_needs_fewer_messages_and_a_ring_fewer_bytes() -> None:
    assert tree_seconds(1, 1e6, 1.0, 1.0) == 0
    assert tree_seconds(1000, 0.0, 1.0, 1.0) == 2 * 10
    assert tree_seconds(4, 1000.0, 0.0, 1.0) == 2000 > ring_seconds(4, 1000.0, 0.0, 1.0) == 1500


def test_the_slowest_of_several() -> None:
    assert expected_largest(1) == pytest.approx(0, abs=1e-12)
    assert expected_largest(2) == pytest.approx(1 / sqrt(pi), rel=1e-5)
    assert expected_largest(3) == pytest.approx(1.5 / sqrt(pi), rel=1e-5)
    drawn = np.random.default_rng(0).normal(size=(4000, 1000)).max(axis=1)
    assert expected_largest(1000) == pytest.approx(drawn.mean(), abs=4 * drawn.std() / sqrt(len(drawn)))


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("processes", [1, 40, 400])
def test_the_samplers_order_opens_as_many_shards_as_calculated(processes: int, workers: int) -> None:
    pairs, shares, per_shard, window, batch = (600_000, 200_000), (0.9, 0.1), 2000, 16, 64
    steps = min(4000, max(60, pairs[0] // (batch * processes)))
    order = make_order(pairs, shares, per_shard, window)
    kept: list[list[OrderedDict[int, None]]] = [[OrderedDict() for _ in pairs] for _ in range(workers)]
    opened = 0
    for number, samples in enumerate(list_samples(order, batch, processes, 0, steps)):
        for sample in samples:
            shards, shard = kept[number % workers][sample.dataset], sample.record // per_shard
            if shard not in shards:
                opened += 1
                if len(shards) == OPEN_SHARDS:
                    shards.popitem(last=False)
            shards[shard] = None
            shards.move_to_end(shard)
    calculated = [
        shards_opened(share * batch * processes, share * batch, per_shard, window, workers) for share in shares
    ]
    assert sum(calculated) == pytest.approx(opened / steps, rel=0.12)


def test_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--pairs", "40000", "20000", "--per-shard", "1000", "--steps", "100", "--processes", "1", "1000"]
    monkeypatch.setattr(sys, "argv", ["scale", *sizes, "--out", str(tmp_path / "out.json")])
    scale.main()
    alone, many = json.loads((tmp_path / "out.json").read_text())["rows"].values()
    assert alone["step, s"] == 1.8 and alone["efficiency"] == "100.0%"
    # Two all-reduces of 10 levels up and down, and twice 12.6 MB at 25 GB/s.
    assert many["reduce"] == pytest.approx(2 * 20 * 0.01 + 2 * 12.599296 / 25, rel=1e-6)
    assert many["step, s"] == pytest.approx(1.8 + (many["reduce"] + many["wait"] + many["stop?"]) / 1000)
    assert many["pairs/s"] == pytest.approx(64_000 / many["step, s"])
    assert many["cores"] == pytest.approx(64 / many["step, s"] / 1900)
    assert "per_shard 1000" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--pairs", "40000"], ["--per-shard", "99999999"]])
def test_arguments_that_do_not_fit(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["scale", *arguments])
    with pytest.raises(SystemExit):
        scale.parse_arguments()

"""A training step beside transformers' BLIP-2 on the same weights and samples: python -m benchmarks.train_step"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.flops import language_step, vision_forward
from benchmarks.machine import describe_machine, interleaved, matmul_peak
from benchmarks.presets import PRESETS, Preset, build_ours, build_peer
from benchmarks.samples import for_peer, make_batches
from minigpt4.common.types import Batch
from minigpt4.models.minigpt4 import MiniGPT4

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LEARNING_RATE = 1e-5


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds over all batches")
    parser.add_argument("--batches", type=int, default=2, help="different batches a round")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    return parser.parse_args()


def our_steps(model: MiniGPT4, batches: list[Batch]) -> tuple[Callable[[], object], list[float]]:
    """Work that trains on every batch once, and the list its losses go to."""
    optimizer = torch.optim.AdamW(model.llama_proj.parameters(), lr=LEARNING_RATE)
    losses: list[float] = []

    def work() -> None:
        losses.clear()
        for batch in batches:
            loss = model(batch.to(model.device)) / batch.num_targets
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())  # type: ignore[arg-type]

    return work, losses


def twin(model: MiniGPT4) -> MiniGPT4:
    """The same frozen parts with a projection of its own, so that each row trains undisturbed."""
    projection = deepcopy(model.llama_proj)
    other = MiniGPT4(None, None, model.llama_model, model.encoder, projection.in_features)
    other.llama_proj = projection
    return other


def cached(batch: Batch, model: MiniGPT4) -> Batch:
    """The batch with its pictures' features in their place, as a feature cache gives them."""
    assert batch.images is not None
    return replace(batch, images=model.encode_queries(batch.images.to(model.device)).to("cpu", torch.float16))


def their_steps(peer: Any, batches: list[Batch], device: torch.device) -> tuple[Callable[[], object], list[float]]:
    """The same for transformers' model, in its usual loop."""
    optimizer = torch.optim.AdamW(peer.language_projection.parameters(), lr=LEARNING_RATE)
    inputs = [for_peer(batch) for batch in batches]
    dtype = next(peer.language_model.parameters()).dtype
    losses: list[float] = []

    def work() -> None:
        losses.clear()
        for batch in inputs:
            moved = {name: tensor.to(device) for name, tensor in batch.items()}
            with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
                loss = peer(**moved | {"pixel_values": moved["pixel_values"].to(dtype)}).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())

    return work, losses


def floor_seconds(preset: Preset, batches: list[Batch], flops_per_second: float) -> float:
    """Seconds that the matrix products alone take at the machine's measured peak, for one step."""
    operations = 0.0
    for batch in batches:
        rows, length = batch.input_ids.shape
        operations += vision_forward(preset, rows)
        operations += language_step(preset, rows, length, batch.target_positions.numel())
    return operations / len(batches) / flops_per_second


def main() -> None:
    args = parse_arguments()
    device, dtype, preset = torch.device(args.device), DTYPES[args.dtype], PRESETS[args.preset]
    ours = build_ours(preset, dtype, device)
    peer = build_peer(preset, ours)
    batches = make_batches(ours.encoder, args.batches, args.batch_size)
    works = {
        "peer": their_steps(peer, batches, device),
        "ours": our_steps(ours, batches),
        "ours, from the feature cache": our_steps(twin(ours), [cached(batch, ours) for batch in batches]),
    }
    seconds = interleaved({name: work for name, (work, _) in works.items()}, args.rounds, device)
    step = {name: median(times) / len(batches) for name, times in seconds.items()}
    losses = {name: torch.tensor(kept) for name, (_, kept) in works.items()}
    figures = {
        "machine": describe_machine(device),
        "preset": preset.name,
        "dtype": args.dtype,
        "batch_size": args.batch_size,
        "seconds_a_step": step,
        "times_as_fast_as_the_peer": {name: step["peer"] / taken for name, taken in step.items()},
        "relative_loss_difference": {
            name: float(((own - losses["peer"]) / losses["peer"]).abs().max()) for name, own in losses.items()
        },
        "floor_seconds": floor_seconds(preset, batches, matmul_peak(dtype, device)),
    }
    _show(figures)
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _show(figures: dict[str, Any]) -> None:
    title = f"Training step, {figures['preset']} preset, {figures['dtype']}, batch {figures['batch_size']}"
    table = Table("", "seconds", "times as fast", "times the floor", "loss differs by", title=title)
    for name, seconds in figures["seconds_a_step"].items():
        ratio, difference = (figures[key][name] for key in ("times_as_fast_as_the_peer", "relative_loss_difference"))
        floor = seconds / figures["floor_seconds"]
        table.add_row(name, f"{seconds:.3f}", f"{ratio:.2f}", f"{floor:.2f}", f"{difference:.1e}")
    table.add_row("floor: matrix products without a cache", f"{figures['floor_seconds']:.3f}", "", "1.00", "")
    console = Console(width=110)
    console.print(table)
    console.print(figures["machine"])


if __name__ == "__main__":
    main()

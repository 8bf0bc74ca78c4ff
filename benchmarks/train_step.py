"""A training step beside transformers' BLIP-2 on the same weights and samples: python -m benchmarks.train_step"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
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
        assert batch.target_positions is not None
        operations += vision_forward(preset, rows)
        operations += language_step(preset, rows, length, batch.target_positions.numel())
    return operations / len(batches) / flops_per_second


def main() -> None:
    args = parse_arguments()
    device, dtype, preset = torch.device(args.device), DTYPES[args.dtype], PRESETS[args.preset]
    ours = build_ours(preset, dtype, device)
    peer = build_peer(preset, ours)
    batches = make_batches(ours.encoder, args.batches, args.batch_size)
    our_work, our_losses = our_steps(ours, batches)
    their_work, their_losses = their_steps(peer, batches, device)
    seconds = interleaved({"ours": our_work, "peer": their_work}, args.rounds, device)
    step = {name: median(times) / len(batches) for name, times in seconds.items()}
    floor = floor_seconds(preset, batches, matmul_peak(dtype, device))
    difference = max(abs(float(a) - float(b)) / float(b) for a, b in zip(our_losses, their_losses, strict=True))
    figures = {
        "machine": describe_machine(device),
        "preset": preset.name,
        "dtype": args.dtype,
        "batch_size": args.batch_size,
        "seconds_a_step": step,
        "ratio": step["peer"] / step["ours"],
        "floor_seconds": floor,
        "times_the_floor": step["ours"] / floor,
        "relative_loss_difference": difference,
    }
    _show(figures)
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _show(figures: dict[str, Any]) -> None:
    step = figures["seconds_a_step"]
    table = Table("", "seconds a step", "times the floor", title=f"training step, {figures['machine']}")
    for name in ("ours", "peer"):
        table.add_row(name, f"{step[name]:.3f}", f"{step[name] / figures['floor_seconds']:.2f}")
    table.add_row("floor (matrix products)", f"{figures['floor_seconds']:.3f}", "1.00")
    console = Console()
    console.print(table)
    console.print(
        f"{figures['preset']} preset, {figures['dtype']}, batch {figures['batch_size']}: "
        f"{figures['ratio']:.2f} x as fast as the peer, losses differ by {figures['relative_loss_difference']:.1e}"
    )


if __name__ == "__main__":
    main()

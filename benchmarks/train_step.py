"""A training step beside transformers' BLIP-2 on the same weights and samples: python -m benchmarks.train_step"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import as_torch_is, describe_machine, interleaved
from benchmarks.presets import PRESETS, build_ours, build_peer
from benchmarks.report import DTYPES, add_common_arguments, peer_dtype, prepare_device, report
from benchmarks.samples import for_peer, make_batches, make_samples
from minigpt4.common.types import Batch
from minigpt4.models.llm import compile_blocks
from minigpt4.models.minigpt4 import MiniGPT4, padded_losses
from minigpt4.runners.metrics import matmul_peak

LEARNING_RATE = 1e-5
Loss = Callable[[MiniGPT4, Batch], Tensor]
Steps = Callable[[], Tensor]
"""Training on every batch once; gives the sum of the losses."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--batches", type=int, default=4, help="different batches a round")
    parser.add_argument("--compile", action="store_true", help="compile the frozen blocks of ours")
    parser.add_argument("--without-peer", action="store_true", help="compare with our own plain path only")
    add_common_arguments(parser)
    return parser.parse_args()


def usual_loss(model: MiniGPT4, batch: Batch) -> Tensor:
    """As training computes it: nothing padded, logits at targets only."""
    loss: Tensor = model(batch)
    return loss


def padded_loss(model: MiniGPT4, batch: Batch) -> Tensor:
    """With padding; logits at positions that are a target in some row."""
    embeds = model.embed(batch.input_ids, model.encode_image(batch.images), batch.image_positions)
    return padded_losses(model.llama_model, embeds, batch).sum()


def plain_loss(model: MiniGPT4, batch: Batch) -> Tensor:
    """With padding and all logits."""
    columns = torch.arange(batch.input_ids.shape[1] - 1, device=model.device)
    return padded_loss(model, replace(batch, target_columns=columns))


def our_steps(model: MiniGPT4, batches: Sequence[Batch], loss_of: Loss) -> Steps:
    """Training on the batches, with a projection of its own so that each row trains undisturbed."""
    own = MiniGPT4(model.visual_encoder, model.bridge, model.llama_model, model.encoder, model.llama_proj.in_features)
    own.llama_proj = deepcopy(model.llama_proj)
    optimizer = torch.optim.AdamW(own.llama_proj.parameters(), lr=LEARNING_RATE)

    def train() -> Tensor:
        total = torch.zeros((), device=model.device)
        for batch in batches:
            loss = loss_of(own, batch.to(model.device))
            (loss / batch.num_targets).backward()
            optimizer.step()
            optimizer.zero_grad()
            total += loss.detach()
        return total

    return train


def their_steps(peer: Any, batches: Sequence[Batch], device: torch.device) -> Steps:
    """The same for transformers' model, in its usual loop."""
    optimizer = torch.optim.AdamW(peer.language_projection.parameters(), lr=LEARNING_RATE)
    inputs = [for_peer(batch) for batch in batches]
    dtype = next(peer.language_model.parameters()).dtype

    def train() -> Tensor:
        total = torch.zeros((), device=device)
        for batch, tensors in zip(batches, inputs, strict=True):
            moved = {name: tensor.to(device) for name, tensor in tensors.items()}
            with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
                loss = peer(**moved | {"pixel_values": moved["pixel_values"].to(dtype)}).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total += loss.detach() * batch.num_targets
        return total

    return train


def cached(batch: Batch, model: MiniGPT4) -> Batch:
    """The batch with its images' features in their place, as a feature cache gives them."""
    assert batch.images is not None
    return replace(batch, images=model.encode_queries(batch.images.to(model.device)).to("cpu", torch.float16))


def floor_seconds(model: MiniGPT4, batches: Sequence[Batch], dtype: torch.dtype) -> float:
    """What the matrix products of a step alone take at the peak measured just now."""
    return model.work_meter().of_all(batches).flops / len(batches) / matmul_peak(dtype, model.device)


def main() -> None:
    args = parse_arguments()
    device, dtype, preset = prepare_device(args.device), DTYPES[args.dtype], PRESETS[args.preset]
    ours = build_ours(preset, dtype, device)
    samples = make_samples(ours.encoder, args.batches * args.batch_size)
    batches = make_batches(samples, args.batch_size)
    by_length = sorted(samples, key=lambda sample: len(sample.encoded.input_ids))
    features = [cached(batch, ours) for batch in batches]
    name = f"ours, {args.dtype}"
    works = {
        f"{name}, plain path": our_steps(ours, batches, plain_loss),
        f"{name}, padded, logits at targets": our_steps(ours, batches, padded_loss),
        f"{name}, the same grouped by length": our_steps(ours, make_batches(by_length, args.batch_size), padded_loss),
        name: our_steps(ours, batches, usual_loss),
        f"{name}, from the feature cache": our_steps(ours, features, usual_loss),
    }
    if not args.without_peer:
        theirs = peer_dtype(args.dtype, device)
        peers = [their_steps(build_peer(preset, ours, DTYPES[theirs]), batches, device) for _ in range(2)]
        works = {f"peer, {theirs}": as_torch_is(peers[0]), "the same with our matrix products": peers[1]} | works
    if args.compile:
        compile_blocks(ours.visual_encoder, ours.bridge, ours.llama_model)
    measured = interleaved(works, args.rounds, device)
    first = next(iter(measured.values()))
    floors = {False: floor_seconds(ours, batches, dtype), True: floor_seconds(ours, features, dtype)}
    rows = {
        row: {
            "seconds a step": one.seconds / args.batches,
            "times as fast": first.seconds / one.seconds,
            "times the floor": one.seconds / args.batches / floors["cache" in row],
            "loss differs by": float(((one.result - first.result) / first.result).abs()),
        }
        for row, one in measured.items()
    }
    tokens = [length for batch in batches for length in batch.lengths]
    padded = sum(batch.input_ids.numel() for batch in batches)
    facts = {
        "machine": describe_machine(device),
        "samples": f"{len(tokens)} of {min(tokens)} to {max(tokens)} tokens, {padded / sum(tokens) - 1:.0%} padding",
        "floor": f"matrix products without padding at the measured peak of {matmul_peak(dtype, device) / 1e9:.0f} "
        f"GFLOP/s: {floors[False]:.3f} s, from the cache {floors[True]:.3f} s",
    }
    report(f"Training step, {preset.name} preset, batch {args.batch_size}", rows, facts, args.out)


if __name__ == "__main__":
    main()

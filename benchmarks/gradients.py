"""Adding gradients in a fixed order beside an all-reduce: torchrun --nproc-per-node 2 -m benchmarks.gradients

A training step of the model that ships, with the gradients of the ranks left alone, added in the order of the
micro-batches (what training does), and added by one all-reduce after the last micro-batch; then the adding alone, for
gradients of larger models. Below: the bytes that each rank sends.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.machine import describe_machine, interleaved
from benchmarks.report import Rows, add_common_arguments, report
from minigpt4.api import load
from minigpt4.common.distributed import GradientSum, start_processes
from minigpt4.common.types import IMAGE_TOKEN, Batch, Sample
from minigpt4.datasets.loaders import collate
from minigpt4.models.minigpt4 import MiniGPT4

ANSWER = "a red circle is left of a large blue square and a small green triangle is below both of them. "
TRAINED = {"MiniGPT-4, 7B": 4 * (768 + 1) * 4096, "MiniGPT-v2 with LoRA": 226_000_000}
"""Bytes of the trainable gradients."""
Way = Callable[[int], None]
"""Adds the gradients of a slot; gets the number of slots that are left in the step."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 4], help="micro-batches of each rank in a step")
    add_common_arguments(parser)
    return parser.parse_args()


def make_batch(model: MiniGPT4, size: int, rank: int) -> Batch:
    """Random images with the same question and answer."""
    side = model.visual_encoder.image_size if model.visual_encoder else 0
    images = torch.randn(size, 3, side, side, generator=torch.Generator().manual_seed(rank))
    encoded = model.encoder.encode_example(f"{IMAGE_TOKEN} Describe it.", ANSWER)
    return collate([Sample(image_id=str(n), images=(image,), encoded=encoded) for n, image in enumerate(images)])


def step(model: MiniGPT4, batch: Batch, slots: int, add: Way) -> Tensor:
    """Forward and backward passes of a step."""
    total = torch.zeros((), device=model.device)
    dist.barrier()  # no rank waits for another one's earlier work
    for left in reversed(range(slots)):
        loss = model(batch) / batch.num_targets
        loss.backward()
        add(left)
        total += loss.detach()
    return total


def alone(slots: int, add: Way) -> None:
    """The adding of a step without its passes."""
    dist.barrier()
    for left in reversed(range(slots)):
        add(left)


def in_order(gradients: GradientSum) -> Way:
    def add(left: int) -> None:
        gradients.end_slot()
        if not left:
            gradients.finish()
            gradients.start()

    return add


def by_all_reduce(parameters: list[nn.Parameter], gradients: GradientSum) -> Way:
    def add(left: int) -> None:
        if not left:
            for parameter in parameters:
                dist.all_reduce(parameter.grad)
            gradients.start()

    return add


def sent_bytes(gradient: float, slots: int, ranks: int) -> tuple[float, float]:
    """Bytes that a rank sends in a step: in order, and by a ring all-reduce."""
    share = gradient * (1 - 1 / ranks)
    return (slots + 1) * share, 2 * share


def rows_of(works: dict[str, Callable[[], object]], rounds: int, device: torch.device, first: str) -> Rows:
    """The seconds of each piece of work, and how many times the first one's they are."""
    measured = interleaved(works, rounds, device)
    return {
        name: {"seconds": one.seconds, "times the first": one.seconds / measured[first].seconds}
        for name, one in measured.items()
    }


def main() -> None:
    args = parse_arguments()
    processes = start_processes("cpu" if args.device == "cpu" else "cuda")
    device = processes.device
    model = load(device=str(device)).model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = GradientSum(parameters, processes)
    gradients.start()
    batch = make_batch(model, args.batch_size, processes.rank).to(device)
    ways: dict[str, Way] = {
        "left alone": lambda left: None,
        "one all-reduce": by_all_reduce(parameters, gradients),
        "added in order": in_order(gradients),
    }
    rows: Rows = {}
    for slots in args.slots:
        steps = {
            f"{slots} x {args.batch_size} samples, {name}": partial(step, model, batch, slots, add)
            for name, add in ways.items()
        }
        rows |= rows_of(steps, args.rounds, device, next(iter(steps)))
    facts = {
        "machine": f"{processes.world_size} processes, {describe_machine(device)}",
        "gradients of the model": f"{sum(p.numel() for p in parameters) * 4 / 1e6:.2f} MB",
    }
    for name, size in TRAINED.items():
        large = [nn.Parameter(torch.zeros(size // 4, device=device))]
        added = GradientSum(large, processes)
        added.start()
        for slots in args.slots:
            title = f"{name}, {size / 1e6:.1f} MB, {slots} slots"
            both = {"one all-reduce": by_all_reduce(large, added), "added in order": in_order(added)}
            adding = {f"{title}, {way}": partial(alone, slots, add) for way, add in both.items()}
            rows |= rows_of(adding, args.rounds, device, next(iter(adding)))
            for ranks in (2, 8):
                ours, ring = sent_bytes(size, slots, ranks)
                facts[f"{title}, {ranks} processes"] = (
                    f"{ours / 1e6:.0f} MB sent by each, all-reduce {ring / 1e6:.0f} MB"
                )
    if processes.is_main:
        report("Gradients of several processes", rows, facts, args.out)
    processes.shutdown()


if __name__ == "__main__":
    main()

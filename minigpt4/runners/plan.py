"""What a run needs, before a weight is loaded: memory by part, the cards that it fits on, steps, time and disk."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch
from rich.table import Table
from torch import nn

from minigpt4.common.cli import console
from minigpt4.common.errors import DataError
from minigpt4.common.logging import duration
from minigpt4.common.schema import Config, LowResource, ModelConfig, Precision
from minigpt4.datasets.builders import build_datasets, prepare_datasets
from minigpt4.datasets.instruction import InstructionDataset
from minigpt4.datasets.loaders import steps_per_epoch
from minigpt4.datasets.shards.dataset import ShardDataset
from minigpt4.models.flops import HALF_FLOPS, WorkMeter, forward_flops
from minigpt4.models.loading import build_prompt_encoder, choose_precision, weight_bytes
from minigpt4.models.memory import (
    TrainingMemory,
    empty_model,
    kv_cache_bytes,
    planned_batch,
    training_memory,
    with_quantised_llm,
)
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.runners.optim import Plan, make_plan, share_global_batch
from minigpt4.tasks.captioning import GROUP_BATCHES

CARDS = (8, 12, 16, 24, 40, 48, 80, 141)
"""Sizes of common cards in GB."""
USABLE = 0.97 * 2**30
"""Bytes of a card's GB that programs can use."""
CUDA_CONTEXT = 2**29
"""Bytes that CUDA and its libraries take before the first tensor."""
TIMED_GPUS = ("RTX 3090", "RTX 4090", "A100", "H100")
PROBED = 1000
"""Records of a dataset whose tokens are counted, evenly spaced."""
PARTS = {
    "vision": "vision encoder and bridge, frozen",
    "llm": "language model, frozen",
    "trainable": "trained weights, float32",
    "gradients": "their gradients",
    "optimizer": "AdamW's moments",
    "saved": "activations for the backward pass",
    "temporary": "logits and work space at the peak",
    "libraries": "what libraries keep beside tensors",
}


@dataclass(frozen=True, slots=True)
class TextLengths:
    """Tokens of a run's samples.

    Attributes:
        longest: (tokens, target tokens) of the longest samples found, as many as a micro-batch has.
        mean: mean tokens of a sample.
        mean_targets: mean target tokens.
    """

    longest: list[tuple[int, int]]
    mean: float
    mean_targets: float


def text_lengths(datasets: Mapping[str, InstructionDataset], batch_size: int) -> TextLengths:
    """The tokens of samples; no image is opened.

    In files of annotations the longest texts are found among all records, in shards among the probed ones.

    Args:
        datasets: datasets trained on, by name; their weights count in the means.
        batch_size: samples of a micro-batch.
    """
    found: list[tuple[int, int]] = []
    tokens = targets = weights = 0.0
    for dataset in datasets.values():
        probed = range(0, len(dataset), max(1, len(dataset) // PROBED))
        counts = list(filter(None, (_counted(dataset, index) for index in probed)))
        if not counts:
            raise DataError(f"datasets.{dataset.name}: none of {len(probed)} captions can be read")
        found += counts
        if not isinstance(dataset, ShardDataset):
            longest = heapq.nlargest(batch_size, range(len(dataset)), key=lambda i, d=dataset: d.text_length(i, 0))  # type: ignore[misc]
            found += filter(None, (_counted(dataset, index) for index in longest if index not in probed))
        tokens += dataset.sample_ratio * sum(total for total, _ in counts) / len(counts)
        targets += dataset.sample_ratio * sum(number for _, number in counts) / len(counts)
        weights += dataset.sample_ratio
    longest_first = sorted(found, reverse=True)
    missing = batch_size - len(longest_first)
    return TextLengths(longest_first[:batch_size] + longest_first[:1] * missing, tokens / weights, targets / weights)


def _counted(dataset: InstructionDataset, index: int) -> tuple[int, int] | None:
    try:
        encoded = dataset.encoded(index, epoch=0)
    except DataError:  # training replaces such a sample
        return None
    return len(encoded.input_ids), encoded.num_targets


def memory_table(memory: TrainingMemory) -> Table:
    """Each part of a process's memory."""
    table = Table("part", "MiB")
    for field in fields(TrainingMemory):
        table.add_row(PARTS[field.name], f"{getattr(memory, field.name) / 2**20:,.1f}")
    table.add_section()
    table.add_row("total", f"{memory.total / 2**20:,.1f}")
    table.columns[1].justify = "right"
    return table


def smallest_card(needed: int) -> int | None:
    """GB of the smallest of `CARDS` that holds `needed` bytes and CUDA itself; None: none does."""
    return next((card for card in CARDS if needed + CUDA_CONTEXT <= card * USABLE), None)


def card_table(in_float32: TrainingMemory, in_half: TrainingMemory, llm: nn.Module) -> Table:
    """What each way to hold the frozen weights needs on a GPU, CUDA included, and the smallest card that has it.

    Args:
        in_float32: memory on a GPU with frozen weights in float32.
        in_half: the same in 16 bit.
        llm: the language model in 16 bit.
    """
    table = Table("frozen weights", "--options", "needs", "with a feature cache", title="GPUs", title_justify="left")
    for name, memory, option in (
        ("float32", in_float32, "model.precision=float32"),
        ("16 bit", in_half, "model.precision=auto"),
        ("LLM in 8 bit", with_quantised_llm(in_half, llm, LowResource.int8), "model.low_resource=8bit"),
        ("LLM in 4 bit", with_quantised_llm(in_half, llm, LowResource.nf4), "model.low_resource=4bit"),
    ):
        table.add_row(name, option, fit(memory.total), fit(memory.total - memory.vision))
    return table


def fit(needed: int) -> str:
    """Bytes as GiB with CUDA, and the smallest card that has them."""
    card = smallest_card(needed)
    return f"{(needed + CUDA_CONTEXT) / 2**30:,.1f} GiB: " + (f"{card} GB" if card else "no common card")


def step_flops(model: MiniGPT4, lengths: TextLengths, plan: Plan) -> tuple[float, float]:
    """Operations of an optimizer step over all processes, and those of the encoders among them.

    Args:
        model: `empty_model`.
        lengths: tokens of the samples; the mean counts.
        plan: batch sizes of the run.
    """
    size = model.visual_encoder.image_size  # type: ignore[union-attr]
    with next(model.parameters()).fake_mode:  # type: ignore[attr-defined]
        image = forward_flops(model.encode_queries, torch.empty(1, 3, size, size))
        rows = plan.batch_size
        batch = planned_batch(
            [round(lengths.mean)] * rows,
            [round(lengths.mean_targets)] * rows,
            model.encoder.num_image_tokens,
            torch.empty(rows, 3, size, size),
        )
    micro_batches = plan.accumulation * plan.world_size
    return WorkMeter(model.llama_model, image).of(batch).flops * micro_batches, image * plan.global_batch


def run_table(
    cfg: Config,
    plan: Plan,
    model: MiniGPT4,
    lengths: TextLengths,
    num_images: int,
    mfu: float,
) -> Table:
    """Steps, tokens, time and disk of a run.

    Args:
        cfg: all settings.
        plan: steps and batch sizes.
        model: `empty_model`.
        lengths: tokens of the samples.
        num_images: images of training and validation.
        mfu: model FLOP utilisation that is assumed.
    """
    flops, encoders = step_flops(model, lengths, plan)
    seen = plan.total_steps * plan.global_batch
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    rows = GROUP_BATCHES * cfg.evaluation.batch_size
    answer = cfg.evaluation.generation.max_new_tokens
    prompt = round(lengths.mean - lengths.mean_targets)
    table = Table("run", "", title="The run", title_justify="left", show_header=False)
    table.add_row("steps", f"{plan.total_steps:,} of {plan.global_batch} samples")
    table.add_row("tokens", f"{seen * lengths.mean:,.0f}, {lengths.mean:.0f} a sample, at most {lengths.longest[0][0]}")
    table.add_row("FLOP", f"{flops * plan.total_steps:.3g}; {encoders / flops:.0%} are saved by a feature cache")
    for gpu in TIMED_GPUS:
        seconds = flops * plan.total_steps / (HALF_FLOPS[gpu] * mfu * plan.world_size)
        time = "under 1 s" if seconds < 1 else duration(seconds)
        table.add_row(f"time on {plan.world_size} x {gpu}", f"{time} at an assumed MFU of {mfu:g} (--mfu)")
    checkpoints = (plan.max_epoch + 2) * 4 * trained  # best and last; weights, two moments, and the weights alone
    table.add_row("disk: checkpoints", f"{checkpoints / 2**20:,.0f} MiB")
    cache = num_images * model.encoder.num_image_tokens * model.query_width * torch.float16.itemsize
    table.add_row("disk: feature cache", f"{cache / 2**20:,.0f} MiB of {num_images:,} images")
    kept = kv_cache_bytes(model.llama_model, rows, prompt + answer)
    table.add_row("keys and values", f"{kept / 2**20:,.0f} MiB in evaluation: {rows} answers of {answer} tokens")
    return table


def planned_format(cfg: ModelConfig, full: nn.Module, on_gpu: bool, world_size: int) -> torch.dtype:
    """Number format that a run will choose by `model.precision`; bfloat16 on a GPU that is not here.

    Args:
        cfg: section `model`.
        full: `empty_model` in float32, which says what weights take whose files are not here yet.
        on_gpu: whether the run is planned for a GPU.
        world_size: number of processes, which on a CPU share its memory.
    """
    if on_gpu and cfg.precision is Precision.auto and not torch.cuda.is_available():
        return torch.bfloat16
    in_float32 = None
    if not weight_bytes(cfg, torch.float32, with_encoders=False):
        in_float32 = sum(part.numel() * part.element_size() for part in full.parameters() if not part.requires_grad)
    return choose_precision(cfg, torch.device("cuda" if on_gpu else "cpu"), world_size, in_float32).frozen


def print_plan(cfg: Config, world_size: int, mfu: float) -> None:
    """Print what a training run needs.

    Args:
        cfg: all settings.
        world_size: number of processes.
        mfu: model FLOP utilisation that is assumed, 0 to 1.

    Raises:
        MiniGPT4Error: The annotations, the language model's folder or a setting cannot be used.
    """
    run = share_global_batch(cfg.run, world_size)
    encoder = build_prompt_encoder(cfg.model)
    prepared = prepare_datasets(cfg.datasets)
    train_data, valid_data = (
        build_datasets(cfg.datasets, cfg.model, encoder, splits, seed=run.seed, train=train, prepared=prepared)
        for splits, train in ((run.train_splits, True), (run.valid_splits, False))
    )
    plan = make_plan(run, steps_per_epoch(run, train_data, world_size), world_size)
    lengths = text_lengths(train_data, run.batch_size)
    on_gpu = run.device != "cpu" and (run.device != "auto" or torch.cuda.is_available())
    full, half = (empty_model(cfg.model, encoder, each) for each in (torch.float32, torch.bfloat16))
    dtype = planned_format(cfg.model, full, on_gpu, world_size)
    longest, targets = zip(*lengths.longest, strict=True)
    in_float32, in_half = (
        training_memory(m, longest, targets, on_gpu=True, world_size=world_size) for m in (full, half)
    )
    model = full if dtype is torch.float32 else half
    if on_gpu:
        memory = in_float32 if model is full else in_half
        memory = with_quantised_llm(memory, model.llama_model, cfg.model.low_resource)
    else:
        memory = training_memory(model, longest, targets, world_size=world_size)
    if all(dataset.feature_cache for dataset in cfg.datasets.values()):
        memory = replace(memory, vision=0)
    images = sum(len(dataset) for data in (train_data, valid_data) for dataset in data.values())
    out = console()
    place = "on a GPU, without CUDA" if on_gpu else "on a CPU, without Python and its libraries"
    number_format = str(dtype).removeprefix("torch.")
    out.print(f"A process with the {run.batch_size} longest samples as its batch; {number_format} {place}:")
    out.print(memory_table(memory))
    out.print(card_table(in_float32, in_half, half.llama_model))
    out.print(run_table(cfg, plan, model, lengths, images, mfu))

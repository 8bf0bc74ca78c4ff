"""A training run, from its configuration to the last checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sized
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from torch import nn

from minigpt4.common.cli import command, console
from minigpt4.common.config import LoadedConfig
from minigpt4.common.distributed import GradientSum, start_processes
from minigpt4.common.logging import duration, log_to_file, set_up_logging
from minigpt4.common.registry import runners, schedules, tasks
from minigpt4.common.types import Sample
from minigpt4.conversation.template import PromptEncoder
from minigpt4.datasets.builders import build_datasets, prepare_datasets
from minigpt4.datasets.instruction import InstructionDataset
from minigpt4.datasets.leaks import training_metadata
from minigpt4.datasets.loaders import steps_per_epoch, train_loader, valid_loader
from minigpt4.datasets.shards.dataset import ShardDataset
from minigpt4.models.llm import shard_llm, shards_llm
from minigpt4.models.loading import build_model, build_prompt_encoder, choose_precision, load_projection
from minigpt4.runners.cached_features import attach_feature_caches
from minigpt4.runners.checkpoints import (
    BEST,
    epoch_file,
    find_resume_point,
    run_identity,
)
from minigpt4.runners.metrics import PeakFlops, Trackers, check_trackers
from minigpt4.runners.optim import (
    LrSettings,
    Plan,
    build_optimizer_step,
    make_plan,
    share_global_batch,
    trainable_parameters,
)
from minigpt4.runners.run_folder import CONFIG, open_run_folder
from minigpt4.runners.trainer import TrainState

logger = logging.getLogger(__name__)
SHOWN_RATES = 100_000
"""Learning rates that a dry run compares to find the highest."""
TARGET_MARKS = ("[[", "]]")
"""Enclose target text, which can then be told apart without colours."""


def train(loaded: LoadedConfig, dry_run: bool = False) -> None:
    """Train as configured; what can be wrong is checked before what takes long.

    Args:
        loaded: the configuration.
        dry_run: build everything, show it, and stop before the first step.

    Raises:
        MiniGPT4Error: A mistake that the user can fix.
    """
    cfg, run = loaded.config, loaded.config.run

    # Names and settings that cost nothing to check.
    task = tasks.get(run.task)()
    trainer_class = runners.get(run.runner)
    lr_schedule = schedules.get(run.lr_sched)
    check_trackers(run.trackers)

    processes = start_processes(run.device)
    share = {"world_size": processes.world_size, "rank": processes.rank}
    set_up_logging(processes.rank)
    run = processes.run_on_main(lambda: share_global_batch(cfg.run, processes.world_size))
    torch.manual_seed(run.seed)  # a new projection is the same in every run with this seed

    # The data: annotations and shard indexes are read, images are not.
    encoder = build_prompt_encoder(cfg.model)
    prepared = processes.run_on_main(lambda: prepare_datasets(cfg.datasets))
    build = partial(build_datasets, cfg.datasets, cfg.model, encoder, seed=run.seed, prepared=prepared)
    train_data = build(run.train_splits, train=True)
    valid_data = build(run.valid_splits, train=False)

    # The plan: how many steps, at which learning rate, in which number formats, from which checkpoint on.
    plan = make_plan(run, steps_per_epoch(run, train_data, processes.world_size), processes.world_size)
    schedule = partial(lr_schedule, settings=LrSettings.of(run, plan.steps_per_epoch))
    precision = processes.run_on_main(lambda: choose_precision(cfg.model, processes.device))
    identity = run_identity(loaded.resolved, plan, train_data)
    start_from, all_cached = None, False
    if not dry_run:
        start_from = processes.run_on_main(lambda: find_resume_point(run, identity))
        all_cached = attach_feature_caches(
            [train_data, valid_data], cfg.datasets, cfg.model, run, precision.frozen, processes
        )

    # The model; without its encoders where every image comes from a cache.
    sharded = shards_llm(run.shard_llm, cfg.model.low_resource, processes)
    model = build_model(
        cfg.model, processes.device, precision.frozen, with_encoders=not all_cached, keep_llm_on_cpu=sharded
    )
    if sharded:
        shard_llm(model, precision.frozen, run.shard_llm, processes)
    parameters = trainable_parameters(model, model.trainable_names())
    if dry_run:
        if processes.is_main:
            out = console()
            out.print(parameter_table(model))
            for name, dataset in train_data.items():
                out.print(f"dataset {name}:", sample_panel(dataset[0], encoder), sep="\n")
            out.print(plan_table(plan, run.warmup_steps, schedule, train_data, valid_data))
            out.print(f"precision: {precision}", "dry run: no run was started", sep="\n")
        return processes.shutdown()
    if start_from is not None:
        load_projection(model, start_from)

    # The run folder, which the log goes to from now on, and which no other run can open.
    with ExitStack() as held:
        folder = processes.run_on_main(lambda: open_run_folder(run, loaded.resolved, held, start_from))
        if processes.is_main:
            log_to_file(folder / "train.log")
        logger.info("run folder: %s", folder)

        # The loop.
        trainer = trainer_class(
            run=run,
            plan=plan,
            processes=processes,
            model=model,
            gradients=GradientSum(parameters.values(), processes),
            task=task,
            optimizer=build_optimizer_step(parameters, run, processes.device, scale_loss=precision.scale_loss),
            schedule=schedule,
            train_batches=lambda step: train_loader(
                run, train_data, start_step=step, statistics=model.statistics, **share
            ),
            valid_batches=valid_loader(run, valid_data, statistics=model.statistics, **share),
            folder=folder,
            identity=identity,
            metadata=processes.run_on_main(
                lambda: training_metadata(
                    cfg.datasets,
                    (train_data, run.train_splits),
                    (valid_data, run.valid_splits),
                    start_from or cfg.model.ckpt,
                    resumed=start_from is not None,
                )
            ),
            trackers=Trackers(run.trackers, run.job_name, folder, loaded.resolved, active=processes.is_main),
            peak=PeakFlops(precision.frozen, processes),
        )
        if start_from is not None:
            trainer.resume(start_from)
        log_result(folder, trainer.state, trainer.train(), epoch_file(plan.max_epoch - 1), train_data, valid_data)
    processes.shutdown()


def log_result(
    folder: Path,
    state: TrainState,
    seconds: float,
    last: str,
    train_data: Mapping[str, InstructionDataset],
    valid_data: Mapping[str, InstructionDataset],
) -> None:
    """Log how a run ended, and the commands that try its result on an image and evaluate it.

    Args:
        folder: run folder.
        state: the trainer's, at the end.
        seconds: duration of the training.
        last: name of the last epoch's checkpoint, named where there was no validation.
        train_data: datasets trained on, by name.
        valid_data: datasets of the validation, by name; the first with a file for each image is evaluated.
    """
    checkpoint, best = last, ""
    if state.best_epoch is not None:
        checkpoint, best = BEST, f"; best: epoch {state.best_epoch}, val loss {state.best_val_loss:.4f}"
    logger.info("done in %s%s; log: %s", duration(seconds), best, folder / "train.log")
    datasets = {**train_data, **valid_data}
    files = {name: dataset for name, dataset in datasets.items() if not isinstance(dataset, ShardDataset)}
    images = (dataset.image_path(0) for dataset in files.values() if dataset.records[0].image)
    image = str(next(images, "IMAGE"))
    chosen = ["--cfg-path", str(folder / CONFIG), "--ckpt", str(folder / checkpoint)]
    logger.info("chat:     %s", command("chat", *chosen, "--image", image))
    evaluated = next((name for name in valid_data if name in files), None)
    if evaluated is not None:
        split = ["--split", str(files[evaluated].records[0].split)]
        name = ["--options", f"evaluation.dataset={evaluated}"] if len(datasets) > 1 else []
        logger.info("evaluate: %s", command("eval", *chosen, *split, *name))


def parameter_table(model: nn.Module) -> Table:
    """Parameters, trainable ones and memory of each part of the model, by number format."""
    table = Table("module", "parameters", "trainable", "dtype", "MiB", title="Parameters", title_justify="left")
    totals = [0.0, 0.0, 0.0]
    for name, child in model.named_children():
        rows: dict[str, list[float]] = {}
        for parameter in child.parameters():
            row = rows.setdefault(str(parameter.dtype).removeprefix("torch."), [0.0, 0.0, 0.0])
            row[0] += parameter.numel()
            row[1] += parameter.numel() if parameter.requires_grad else 0
            row[2] += parameter.numel() * parameter.element_size() / 2**20
        for dtype, row in rows.items():
            table.add_row(name, f"{row[0]:,.0f}", f"{row[1]:,.0f}", dtype, f"{row[2]:,.1f}")
            totals = [total + part for total, part in zip(totals, row, strict=True)]
    table.add_section()
    table.add_row("total", f"{totals[0]:,.0f}", f"{totals[1]:,.0f}", "", f"{totals[2]:,.1f}")
    for column in (1, 2, 4):
        table.columns[column].justify = "right"
    return table


def sample_panel(sample: Sample, encoder: PromptEncoder) -> Panel:
    """The sample as the language model reads it; target text is green and in double brackets."""
    text = Text()
    for part, is_target in encoder.labelled_segments(sample.encoded):
        marked = TARGET_MARKS[0] + part + TARGET_MARKS[1] if is_target else part
        text.append(marked, style="bold green" if is_target else "")
    ids = sample.encoded
    footer = f"{len(ids.input_ids)} tokens, {ids.num_targets} trained on: those in {' '.join(TARGET_MARKS)}"
    return Panel(text, title=f"Sample {sample.image_id}", title_align="left", subtitle=footer, subtitle_align="left")


def plan_table(
    plan: Plan,
    warmup_steps: int,
    schedule: Callable[[int], float],
    train_data: Mapping[str, Sized],
    valid_data: Mapping[str, Sized],
) -> Table:
    """Samples, steps, batch sizes and learning rates of a run.

    Args:
        plan: steps and batch sizes.
        warmup_steps: optimizer steps of warm-up.
        schedule: global optimizer step -> learning rate.
        train_data: datasets trained on, by name.
        valid_data: datasets of the validation, by name.
    """
    last = plan.total_steps - 1
    # All steps of most runs; of longer ones some, and the end of warm-up, where the known schedules have their peak.
    steps = {*range(0, plan.total_steps, last // SHOWN_RATES + 1), min(warmup_steps, last), last}
    peak = max(sorted(steps), key=schedule)
    num_samples, seen = sum(map(len, train_data.values())), plan.total_steps * plan.global_batch
    table = Table("plan", "", title="Planned steps", title_justify="left")
    table.add_row("train", f"{num_samples:,} samples")
    table.add_row("validation", f"{sum(map(len, valid_data.values())):,} samples")
    table.add_row("epochs", f"{plan.max_epoch}")
    table.add_row("steps per epoch", f"{plan.steps_per_epoch:,}")
    table.add_row("steps", f"{plan.total_steps:,}")
    table.add_row("global batch", f"{plan.global_batch} ({plan.factors})")
    table.add_row("samples seen", f"{seen:,} ({seen / max(1, num_samples):.2f} x the training data)")
    table.add_row("warm-up", f"{warmup_steps:,} steps")
    table.add_row(
        "learning rate", f"{schedule(0):.3g} at step 0, {schedule(peak):.3g} at {peak}, {schedule(last):.3g} at the end"
    )
    return table

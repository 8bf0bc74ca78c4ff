"""A training run, put together from top to bottom."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from torch import nn

from minigpt4.common.cli import console
from minigpt4.common.config import LoadedConfig
from minigpt4.common.distributed import Processes, SharedGradients, start_processes
from minigpt4.common.logging import log_to_file, set_up_logging
from minigpt4.common.registry import runners, schedules, tasks
from minigpt4.common.schema import Config, RunConfig
from minigpt4.common.types import Sample
from minigpt4.conversation.encoding import PromptEncoder
from minigpt4.datasets.builders import build_datasets, prepare_datasets
from minigpt4.datasets.instruction import InstructionDataset
from minigpt4.datasets.loaders import steps_per_epoch, train_loader, valid_loader
from minigpt4.models.llm import shard_llm, shards_llm
from minigpt4.models.loading import TrainPrecision, build_model, build_prompt_encoder, load_projection, train_precision
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.runners.checkpoints import (
    check_run_folder,
    check_same_run,
    data_identity,
    make_run_folder,
    read_resumable,
    run_identity,
    seed_all,
    write_config,
)
from minigpt4.runners.launch import Launch
from minigpt4.runners.metrics import Trackers, check_trackers, matmul_peak
from minigpt4.runners.optim import (
    LrSettings,
    Plan,
    build_optimizer_step,
    trainable_parameters,
    warn_of_long_warmup,
)
from minigpt4.runners.precompute import attach_feature_caches
from minigpt4.runners.trainer import RunParts
from minigpt4.tasks import Task

logger = logging.getLogger(__name__)
LEARNT = ("[[", "]]")
"""Stand around learnt text, so that it can be told apart without colours."""


def parameter_table(model: nn.Module) -> Table:
    """A row for each part of the model and number format."""
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
    """The sample as the language model reads it; learnt text is green and stands in double brackets."""
    text = Text()
    for part, learnt in encoder.labelled_segments(sample.encoded):
        text.append(LEARNT[0] + part + LEARNT[1] if learnt else part, style="bold green" if learnt else "")
    ids = sample.encoded
    footer = f"{len(ids.input_ids)} tokens, {ids.num_targets} learnt: those in {LEARNT[0]} {LEARNT[1]}"
    return Panel(text, title=f"Sample {sample.image_id}", title_align="left", subtitle=footer, subtitle_align="left")


def plan_table(plan: Plan, run: RunConfig, schedule: Callable[[int], float], counts: dict[str, int]) -> Table:
    """What the run would do.

    Args:
        plan: Its sizes.
        run: Its configuration.
        schedule: Global optimizer step -> learning rate.
        counts: Name -> number of samples, for training and for validation.
    """
    rates = [schedule(step) for step in range(plan.total_steps)]
    peak = max(range(plan.total_steps), key=rates.__getitem__)
    parts = f"{plan.batch_size} a micro-batch x {plan.accumulation} accumulated x {plan.world_size} processes"
    seen = plan.total_steps * plan.global_batch
    table = Table("plan", "", title="Planned steps", title_justify="left")
    for name, count in counts.items():
        table.add_row(name, f"{count:,} samples")
    table.add_row("epochs", f"{plan.max_epoch}")
    table.add_row("steps per epoch", f"{plan.steps_per_epoch:,}")
    table.add_row("steps", f"{plan.total_steps:,}")
    table.add_row("global batch", f"{plan.global_batch} ({parts})")
    table.add_row("samples seen", f"{seen:,} ({seen / max(1, counts.get('train', 0)):.2f} x the training data)")
    table.add_row("warm-up", f"{run.warmup_steps:,} steps")
    table.add_row("learning rate", f"{rates[0]:.3g} at step 0, {rates[peak]:.3g} at {peak}, {rates[-1]:.3g} at the end")
    return table


Datasets = Mapping[str, InstructionDataset]


def train(loaded: LoadedConfig, dry_run: bool = False) -> None:
    """A whole run, from its configuration to the last checkpoint.

    What can be wrong is looked at before what takes long; a user's mistake is a MiniGPT4Error.

    Args:
        loaded: The configuration.
        dry_run: Stop when everything is built, and show it.
    """
    cfg, run = loaded.config, loaded.config.run
    task, runner_class, lr_at = _look_up(run)
    processes = start_processes(run.device)
    set_up_logging(processes.rank)
    seed_all(run.seed)  # the same in every process, so that a fresh projection is

    encoder = build_prompt_encoder(cfg.model)
    train_data, valid_data = _build_data(cfg, encoder, processes)
    plan = _plan(cfg, train_data, processes.world_size)
    schedule = partial(lr_at, settings=LrSettings.of(run, plan.steps_per_epoch))
    precision = train_precision(run.amp, cfg.model.precision, processes.device)
    if dry_run:
        model, _ = _build_model(cfg, precision, processes)
        if processes.is_main:
            _show(cfg, model, train_data, valid_data, plan, schedule, precision)
        return processes.shutdown()

    identity = run_identity(plan, data_identity(train_data))
    launch = Launch.join(run, processes)
    start_from = _resume_point(loaded, identity, launch, processes)
    cached = attach_feature_caches(cfg, [train_data, valid_data], precision.frozen, processes)
    model, parameters = _build_model(cfg, precision, processes, with_encoders=not cached)
    if start_from is not None:
        load_projection(model, start_from)
    folder = _open_folder(loaded, start_from, launch, processes)

    seed_all(run.seed + processes.rank)
    share = {"world_size": processes.world_size, "rank": processes.rank}
    parts = RunParts(
        run=run,
        resolved=loaded.resolved,
        identity=identity,
        plan=plan,
        processes=processes,
        model=model,
        shared=SharedGradients(model, processes),
        task=task,
        updater=build_optimizer_step(parameters, run, processes.device, precision.scale_loss),
        schedule=schedule,
        train_batches=lambda step: train_loader(run, train_data, start_step=step, **share),
        valid_batches=valid_loader(run, valid_data, **share),
        folder=folder,
        trackers=Trackers(run.trackers, run.job_name, folder, loaded.resolved, active=processes.is_main),
        peak=_peak(precision.frozen, processes),
    )
    runner = runner_class(parts)
    if start_from is not None:
        runner.resume(read_resumable(start_from), start_from)
    runner.run()
    launch.end(folder, processes)
    processes.shutdown()


def _build_data(cfg: Config, encoder: PromptEncoder, processes: Processes) -> tuple[Datasets, Datasets]:
    """The datasets to train on and to validate on."""
    prepared = processes.run_on_main(lambda: prepare_datasets(cfg.datasets))
    build = partial(build_datasets, cfg.datasets, cfg.model, encoder, seed=cfg.run.seed, prepared=prepared)
    return build(cfg.run.train_splits, train=True), build(cfg.run.valid_splits, train=False)


def _build_model(
    cfg: Config, precision: TrainPrecision, processes: Processes, with_encoders: bool = True
) -> tuple[MiniGPT4, dict[str, nn.Parameter]]:
    """The model with its weights, its language model divided among processes where that is configured; what learns."""
    sharded = shards_llm(cfg.run.shard_llm, cfg.model.low_resource, processes)
    logger.info("precision: %s", precision)
    model = build_model(
        cfg.model, processes.device, precision.frozen, with_encoders=with_encoders, keep_llm_on_cpu=sharded
    )
    if sharded:
        shard_llm(model, precision.frozen, cfg.run.shard_llm, processes)
    return model, trainable_parameters(model, model.trainable_state())


def _peak(dtype: torch.dtype, processes: Processes) -> float:
    """FLOP/s of the devices of all processes."""
    own = torch.tensor(matmul_peak(dtype, processes.device), dtype=torch.float64, device=processes.device)
    return float(processes.sum(own))


def _look_up(run: RunConfig) -> tuple[Task, Callable[[RunParts], Any], Callable[..., float]]:
    """Task, runner and schedule by name, and whatever else costs nothing to check."""
    check_trackers(run.trackers)
    return tasks.get(run.task)(), runners.get(run.runner), schedules.get(run.lr_sched)


def _plan(cfg: Config, train_data: Datasets, world_size: int) -> Plan:
    plan = Plan(
        max_epoch=cfg.run.max_epoch,
        steps_per_epoch=steps_per_epoch(cfg.run, train_data, world_size),
        batch_size=cfg.run.batch_size,
        accumulation=cfg.run.accum_grad_iters,
        world_size=world_size,
    )
    warn_of_long_warmup(plan, cfg.run)
    return plan


def _resume_point(
    loaded: LoadedConfig, identity: Mapping[str, Any], launch: Launch, processes: Processes
) -> Path | None:
    """The checkpoint to go on from, found once for all processes and known to be of this run."""

    def find() -> Path | None:
        found = launch.resume_point(loaded.config.run)
        if found is not None:
            check_same_run(read_resumable(found), loaded.resolved, identity, found)
        check_run_folder(loaded.config.run, found)
        return found

    return processes.run_on_main(find)


def _open_folder(loaded: LoadedConfig, start_from: Path | None, launch: Launch, processes: Processes) -> Path:
    """The run folder, with the resolved configuration in it and the log going there too."""

    def make() -> Path:
        folder = launch.folder or make_run_folder(loaded.config.run, start_from)
        launch.begin(folder, start_from)
        write_config(folder, loaded.resolved)
        return folder

    folder = processes.run_on_main(make)
    if processes.is_main:
        log_to_file(folder / "train.log")
    logger.info("run folder: %s", folder)
    return folder


def _show(
    cfg: Config,
    model: Any,
    train_data: Datasets,
    valid_data: Datasets,
    plan: Plan,
    schedule: Any,
    precision: TrainPrecision,
) -> None:
    """Print what a dry run is for: parameters, a sample with its label mask, the planned steps."""
    out = console()
    out.print(parameter_table(model))
    for name, dataset in train_data.items():
        out.print(f"dataset {name}:", sample_panel(dataset[0], model.encoder), sep="\n")
    counts = {"train": sum(map(len, train_data.values())), "validation": sum(map(len, valid_data.values()))}
    out.print(plan_table(plan, cfg.run, schedule, counts))
    out.print(f"precision: {precision}")
    out.print("dry run: no run was started")

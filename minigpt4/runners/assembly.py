"""A training run put together, top to bottom."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minigpt4.common.config import LoadedConfig
from minigpt4.common.console import console
from minigpt4.common.dist import Processes, start_processes
from minigpt4.common.log import log_to_file, set_up_logging
from minigpt4.common.parallel import SharedGradients
from minigpt4.common.registry import runners, schedules, tasks
from minigpt4.common.schema import Config, RunConfig
from minigpt4.conversation.encoding import PromptEncoder
from minigpt4.datasets.builders import build_datasets, common_setting, prepare_datasets
from minigpt4.datasets.instruction import InstructionDataset
from minigpt4.datasets.loaders import steps_per_epoch, train_loader, valid_loader
from minigpt4.models.loading import build_encoder, build_model, load_projection
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.sharding import shard_llm, shards_llm
from minigpt4.runners.checkpoints import read_resumable
from minigpt4.runners.feature_cache import use_caches
from minigpt4.runners.launch import Launch
from minigpt4.runners.lr_schedule import LrSettings
from minigpt4.runners.optimizer import build_updater, trainable_parameters
from minigpt4.runners.parts import RunParts
from minigpt4.runners.peak import matmul_peak
from minigpt4.runners.plan import Plan, check_run, warn_of_long_warmup
from minigpt4.runners.precision import TrainPrecision, train_precision
from minigpt4.runners.resume import check_same_run, data_identity, run_identity
from minigpt4.runners.rng import seed_all
from minigpt4.runners.run_folder import check_run_folder, make_run_folder, write_config
from minigpt4.runners.summary import parameter_table, plan_table, sample_panel
from minigpt4.runners.trackers import Trackers, check_trackers
from minigpt4.tasks import Task

logger = logging.getLogger(__name__)
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

    encoder = build_encoder(cfg.model)
    train_data, valid_data = _build_data(cfg, encoder, processes)
    plan = _plan(cfg, train_data, processes.world_size)
    schedule = partial(lr_at, settings=LrSettings.of(run, plan.steps_per_epoch))
    precision = train_precision(run.amp, cfg.model.precision, processes.device)
    if dry_run:
        model, _ = _build_model(cfg, precision, processes)
        if processes.is_main:
            _show(cfg, model, train_data, valid_data, plan, schedule, precision)
        return processes.leave()

    identity = run_identity(plan, data_identity(train_data))
    launch = Launch.join(run, processes)
    start_from = _resume_point(loaded, identity, launch, processes)
    cached = use_caches(cfg, [train_data, valid_data], precision.frozen, processes)
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
        updater=build_updater(parameters, run, processes.device, precision.scale_loss),
        schedule=schedule,
        train_batches=lambda step: train_loader(cfg, train_data, start_step=step, **share),
        valid_batches=valid_loader(cfg, valid_data, **share),
        folder=folder,
        trackers=Trackers(run.trackers, run.job_name, folder, loaded.resolved, active=processes.is_main),
        peak=_peak(precision.frozen, processes),
    )
    runner = runner_class(parts)
    if start_from is not None:
        runner.resume(read_resumable(start_from), start_from)
    runner.run()
    launch.end(folder, processes)
    processes.leave()


def _build_data(cfg: Config, encoder: PromptEncoder, processes: Processes) -> tuple[Datasets, Datasets]:
    """The datasets to train on and to validate on."""
    prepared = processes.from_main(lambda: prepare_datasets(cfg))
    train_data = build_datasets(cfg, encoder, cfg.run.train_splits, train=True, prepared=prepared)
    return train_data, build_datasets(cfg, encoder, cfg.run.valid_splits, train=False, prepared=prepared)


def _build_model(
    cfg: Config, precision: TrainPrecision, processes: Processes, with_encoders: bool = True
) -> tuple[MiniGPT4, dict[str, nn.Parameter]]:
    """The model with its weights, its language model divided among processes where that is configured; what learns."""
    sharded = shards_llm(cfg, processes)
    logger.info("precision: %s", precision)
    model = build_model(
        cfg.model, processes.device, precision.frozen, with_encoders=with_encoders, llm_as_filed=sharded
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
    check_run(run)
    check_trackers(run.trackers)
    return tasks.get(run.task)(), runners.get(run.runner), schedules.get(run.lr_sched)


def _plan(cfg: Config, train_data: Datasets, world_size: int) -> Plan:
    plan = Plan(
        max_epoch=cfg.run.max_epoch,
        steps_per_epoch=steps_per_epoch(cfg, train_data, world_size),
        batch_size=common_setting(cfg, train_data, "batch_size"),
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

    return processes.from_main(find)


def _open_folder(loaded: LoadedConfig, start_from: Path | None, launch: Launch, processes: Processes) -> Path:
    """The run folder, with the resolved configuration in it and the log going there too."""

    def make() -> Path:
        folder = launch.folder or make_run_folder(loaded.config.run, start_from)
        launch.begin(folder, start_from)
        write_config(folder, loaded.resolved)
        return folder

    folder = processes.from_main(make)
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

"""Several checkpoints -> captions of the same pictures -> one table, one plot, one report."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from minigpt4.common.checkpoint import read_checkpoint
from minigpt4.common.distributed import Processes, start_processes
from minigpt4.common.errors import ConfigError, DataError
from minigpt4.common.logging import set_up_logging
from minigpt4.common.schema import Config, EvaluationConfig
from minigpt4.datasets.builders import build_dataset
from minigpt4.evaluation.caption import check_metrics, score_checkpoints
from minigpt4.evaluation.fluency import fluency_scores
from minigpt4.evaluation.predictions import Prediction, merge_shards, save_predictions
from minigpt4.evaluation.protocol import Protocol
from minigpt4.evaluation.results import CheckpointResult, WrittenResults, write_results
from minigpt4.evaluation.statistics import swap_pictures
from minigpt4.models.loading import build_model, build_prompt_encoder, evaluation_dtype, load_projection
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.runners.checkpoints import new_folder, seed_all
from minigpt4.scenes.scores import all_objects_accuracy, object_accuracy
from minigpt4.scenes.vocabulary import Scene, load_scenes
from minigpt4.tasks.captioning import Captioning, select_pictures


def checkpoint_labels(paths: Sequence[str]) -> list[str]:
    """Names for people: "epoch 3" for checkpoint_3.pth, else the file's name; equals get their folder's too."""
    labels = []
    for path in map(Path, paths):
        epoch = re.fullmatch(r"checkpoint_(\d+)", path.stem)
        labels.append(f"epoch {epoch.group(1)}" if epoch else path.stem.replace("_", " "))
    return [
        f"{Path(path).parent.name} {label}" if labels.count(label) > 1 else label
        for path, label in zip(paths, labels, strict=True)
    ]


def evaluated_dataset(cfg: Config) -> str:
    """Which dataset to evaluate.

    Raises:
        ConfigError: evaluation.dataset names none of the configured ones, or is not set although there are several.
    """
    names = list(cfg.datasets)
    chosen = cfg.evaluation.dataset
    if chosen is None and len(names) == 1:
        return names[0]
    if chosen in cfg.datasets:
        return str(chosen)
    raise ConfigError(
        f"evaluation.dataset: {chosen!r} is not one of the configured datasets ({', '.join(names) or 'none'})"
    )


def evaluate(cfg: Config, checkpoints: Sequence[str]) -> WrittenResults | None:
    """Describe the pictures of a split by each checkpoint, save what was said, then score it.

    Everything that can fail early is tried first: metrics and their Java, the split, every checkpoint.

    Args:
        cfg: The configuration.
        checkpoints: Files with a projection each; none: the one of `model.ckpt`.

    Returns:
        Table and paths of what was written, on the main process; None on the others.

    Raises:
        MiniGPT4Error: A metric, path, split or checkpoint that cannot be used.
    """
    processes = start_processes(cfg.run.device)
    set_up_logging(processes.rank)
    metrics = check_metrics(cfg.evaluation.metrics)
    scenes = load_scenes(cfg.evaluation.scenes) if cfg.evaluation.scenes else None
    name = evaluated_dataset(cfg)
    labelled = dict(zip(checkpoint_labels(files := _files(cfg, checkpoints)), files, strict=True))
    dataset = build_dataset(
        name,
        cfg.datasets[name],
        cfg.model,
        build_prompt_encoder(cfg.model),
        [cfg.evaluation.split],
        seed=cfg.run.seed,
        train=False,
    )
    selection = select_pictures(dataset.records, cfg.evaluation)
    model = _build_model(cfg, files, processes.device)
    job = Captioning(model, dataset, selection, cfg.evaluation, processes.rank, processes.world_size)
    out_dir = processes.run_on_main(lambda: _output_folder(cfg))
    seed_all(cfg.evaluation.seed + processes.rank)
    predictions = {label: _describe(job, label, path, out_dir, processes) for label, path in labelled.items()}
    processes.shutdown()
    if not processes.is_main:
        return None
    references = {item.image_id: item.references for item in next(iter(predictions.values()))}
    protocol = Protocol.of(references, metrics, dataset=name, **_conditions(cfg, job))
    captions = {label: {item.image_id: item.caption for item in listed} for label, listed in predictions.items()}
    scores = score_checkpoints(references, captions, metrics)
    results = [
        CheckpointResult(
            label, scores[label], predictions[label], _further_scores(captions[label], scenes, cfg.evaluation)
        )
        for label in labelled
    ]
    return write_results(
        out_dir,
        protocol,
        results,
        image_dir=dataset.images,
        title=f"{name}: {cfg.evaluation.split} split",
        max_cards=cfg.evaluation.report_samples,
    )


def _output_folder(cfg: Config) -> Path:
    """`evaluation.output_dir`, or a new folder named by the time."""
    if cfg.evaluation.output_dir:
        return Path(cfg.evaluation.output_dir)
    return new_folder(Path(cfg.paths.output_root) / "evaluation")


def _files(cfg: Config, checkpoints: Sequence[str]) -> list[str]:
    files = list(checkpoints) or ([cfg.model.ckpt] if cfg.model.ckpt else [])
    if not files:
        raise ConfigError("no checkpoint to evaluate: name some after --ckpt, or set model.ckpt")
    repeated = sorted({path for path in files if files.count(path) > 1})
    if repeated:
        raise ConfigError(f"--ckpt: {repeated[0]} is named twice")
    return files


def _build_model(cfg: Config, files: Sequence[str], device: torch.device) -> MiniGPT4:
    """The model; every checkpoint is loaded once, so that one that does not fit is found before any generation."""
    for path in files:
        read_checkpoint(path)  # a missing or broken one is found before minutes of loading the model
    model = build_model(replace(cfg.model, ckpt=None), device, evaluation_dtype(cfg.evaluation.precision, device))
    for path in files:
        load_projection(model, path)
    return model


def _describe(job: Captioning, label: str, path: str, out_dir: Path, processes: Processes) -> list[Prediction]:
    """All processes' captions by one checkpoint, in the order of the selection, saved by the main process."""
    load_projection(job.model, path)
    shares = processes.gather([_prediction(job, index, text) for index, text in job.describe(label)])
    job.skipped_everywhere = [message for share in processes.gather(job.skipped) for message in share]
    order = [job.dataset.records[index].image_id for index in job.selection]
    said = {item.image_id for share in shares for item in share}
    predictions = merge_shards(shares, order=[image_id for image_id in order if image_id in said])
    if not predictions:
        raise DataError(f"none of the {len(order)} pictures can be read; the first: {job.skipped_everywhere[0]}")
    if processes.is_main:
        target = out_dir / f"predictions_{re.sub('[^A-Za-z0-9._-]+', '_', label)}.json"
        save_predictions(target, predictions, {"checkpoint": path, "skipped": job.skipped_everywhere})
    return predictions


def _prediction(job: Captioning, index: int, text: str) -> Prediction:
    record = job.dataset.records[index]
    return Prediction(record.image_id, text, filename=record.image, references=record.answers)


def _conditions(cfg: Config, job: Captioning) -> dict[str, Any]:
    """What the protocol says of how captions were made."""
    chosen = {"limit": cfg.evaluation.limit, "fraction": cfg.evaluation.fraction}
    selection = {key: value for key, value in chosen.items() if value is not None}
    if cfg.evaluation.fraction is not None:
        selection["seed"] = cfg.evaluation.seed
    notes: dict[str, Any] = {"frozen_weights": job.model.base}
    if job.skipped_everywhere:
        notes["pictures_left_out"] = job.skipped_everywhere
    return {
        "split": cfg.evaluation.split,
        "prompt": job.model.encoder.template.render(job.prompt),
        "generation": asdict(cfg.evaluation.generation),
        "selection": selection,
        "notes": notes,
    }


def _further_scores(
    captions: Mapping[str, str], scenes: Mapping[str, Scene] | None, cfg: EvaluationConfig
) -> dict[str, float]:
    """What the configuration asks for besides the caption metrics."""
    fluency = fluency_scores(captions.values()) if cfg.fluency else {}
    return _scene_scores(captions, scenes, cfg.seed) | fluency


def _scene_scores(captions: Mapping[str, str], scenes: Mapping[str, Scene] | None, seed: int) -> dict[str, float]:
    if scenes is None:
        return {}
    return {
        "object_accuracy": object_accuracy(captions, scenes),
        "all_objects_accuracy": all_objects_accuracy(captions, scenes),
        "object_accuracy_shuffled": object_accuracy(swap_pictures(captions, seed), scenes),
    }

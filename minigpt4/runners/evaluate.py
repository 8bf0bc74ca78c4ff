"""Several checkpoints -> captions of the same images -> one table, one plot, one report."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from minigpt4.common.checkpoint import read_checkpoint
from minigpt4.common.distributed import start_processes
from minigpt4.common.errors import ConfigError, DataError
from minigpt4.common.logging import set_up_logging
from minigpt4.common.schema import Config, ModelConfig, Precision
from minigpt4.datasets.builders import build_dataset
from minigpt4.evaluation.caption import check_metrics, score_checkpoints
from minigpt4.evaluation.fluency import fluency_scores
from minigpt4.evaluation.predictions import Prediction, merge_shards, save_predictions
from minigpt4.evaluation.protocol import Protocol
from minigpt4.evaluation.results import CheckpointResult, WrittenResults, write_results
from minigpt4.evaluation.statistics import swap_images
from minigpt4.models.loading import build_model, build_prompt_encoder, evaluation_dtype, load_projection
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.processors.image import open_image
from minigpt4.runners.checkpoints import new_folder
from minigpt4.scenes.scores import all_objects_accuracy, object_accuracy
from minigpt4.scenes.vocabulary import Scene, load_scenes
from minigpt4.tasks.captioning import Captioning, select_images


def evaluate(cfg: Config, checkpoints: Sequence[str]) -> WrittenResults | None:
    """Describe the images of a split with each checkpoint, save the captions, then score them.

    Everything that can fail early is tried first: metrics and their Java, the split, every checkpoint.

    Args:
        cfg: all settings.
        checkpoints: files with a projection each; empty: the one of `model.ckpt`.

    Returns:
        Table and paths of what was written, on rank 0; None on the others.

    Raises:
        MiniGPT4Error: a metric, path, split or checkpoint cannot be used.
    """
    settings = cfg.evaluation
    processes = start_processes(cfg.run.device)
    set_up_logging(processes.rank)
    metrics = check_metrics(settings.metrics)
    scenes = load_scenes(settings.scenes) if settings.scenes else None
    name = evaluated_dataset(settings.dataset, list(cfg.datasets))
    files = checkpoint_files(checkpoints, cfg.model.ckpt)
    labels = checkpoint_labels(files)
    dataset = build_dataset(
        name,
        cfg.datasets[name],
        cfg.model,
        build_prompt_encoder(cfg.model),
        [settings.split],
        seed=cfg.run.seed,
        train=False,
    )
    selection = select_images(dataset.records, settings.limit, settings.fraction, settings.seed)
    model = _load_model(cfg.model, settings.precision, files, processes.device)
    captioning = Captioning(model, dataset, selection, settings, processes.rank, processes.world_size)
    out_dir = processes.run_on_main(lambda: _output_folder(settings.output_dir, cfg.paths.output_root))

    # Captions are only random where generation samples.
    torch.manual_seed(settings.seed + processes.rank)
    unreadable: dict[int, str] = {}
    for share in processes.gather(captioning.encode_images()):
        unreadable |= share
    skipped = list(unreadable.values())
    order = [dataset.records[index].image_id for index in selection if index not in unreadable]
    if not order:
        raise DataError(f"none of the {len(selection)} images can be read; the first: {skipped[0]}")
    predictions: dict[str, list[Prediction]] = {}
    for label, path in zip(labels, files, strict=True):
        load_projection(model, path)
        predictions[label] = merge_shards(processes.gather(captioning.describe(label)), order)
        if processes.is_main:
            file = out_dir / f"predictions_{re.sub('[^A-Za-z0-9._-]+', '_', label)}.json"
            save_predictions(file, predictions[label], {"checkpoint": path, "skipped": skipped})
    processes.shutdown()
    if not processes.is_main:
        return None

    references = {item.image_id: item.references for item in predictions[labels[0]]}
    captions = {label: {item.image_id: item.caption for item in predictions[label]} for label in labels}
    scores = score_checkpoints(references, captions, metrics)
    results = []
    for label in labels:
        more = _scene_scores(captions[label], scenes, settings.seed) if scenes is not None else {}
        if settings.fluency:
            more |= fluency_scores(captions[label].values())
        results.append(CheckpointResult(label, scores[label], predictions[label], more))
    part = {
        "limit": settings.limit,
        "fraction": settings.fraction,
        "seed": settings.seed if settings.fraction is not None else None,
    }
    protocol = Protocol.of(
        references,
        metrics,
        dataset=name,
        split=settings.split,
        prompt=model.encoder.template.render(captioning.prompt),
        generation=asdict(settings.generation),
        selection={key: value for key, value in part.items() if value is not None},
        notes={"frozen_weights": model.base} | ({"pictures_left_out": skipped} if skipped else {}),
    )
    return write_results(
        out_dir,
        protocol,
        results,
        image_dir=dataset.images,
        open_image=open_image,
        title=f"{name}: {settings.split} split",
        max_cards=settings.report_samples,
    )


def evaluated_dataset(chosen: str | None, names: Sequence[str]) -> str:
    """The dataset to evaluate.

    Args:
        chosen: evaluation.dataset.
        names: the configured datasets.

    Raises:
        ConfigError: evaluation.dataset names none of them, or is not set although there are several.
    """
    if chosen is None and len(names) == 1:
        return names[0]
    if chosen is None or chosen not in names:
        raise ConfigError(
            f"evaluation.dataset: {chosen!r} is not one of the configured datasets ({', '.join(names) or 'none'})"
        )
    return chosen


def checkpoint_files(checkpoints: Sequence[str], default: str | None) -> list[str]:
    """The checkpoints to evaluate.

    Args:
        checkpoints: files of the command line.
        default: model.ckpt, used where the command line names none.

    Raises:
        ConfigError: there is none, or one is named twice.
    """
    files = list(checkpoints) or ([default] if default else [])
    if not files:
        raise ConfigError("no checkpoint to evaluate: name some after --ckpt, or set model.ckpt")
    repeated = sorted({path for path in files if files.count(path) > 1})
    if repeated:
        raise ConfigError(f"--ckpt: {repeated[0]} is named twice")
    return files


def checkpoint_labels(paths: Sequence[str]) -> list[str]:
    """Different names for people: "epoch 3" for checkpoint_3.pth, else the file's name; where two would be equal, with
    their folder's name, or else the path."""
    labels = []
    for path in map(Path, paths):
        epoch = re.fullmatch(r"checkpoint_(\d+)", path.stem)
        labels.append(f"epoch {epoch.group(1)}" if epoch else path.stem.replace("_", " "))
    longer = [
        f"{Path(path).parent.name} {label}" if labels.count(label) > 1 else label
        for path, label in zip(paths, labels, strict=True)
    ]
    return [path if longer.count(label) > 1 else label for path, label in zip(paths, longer, strict=True)]


def _output_folder(output_dir: str | None, output_root: str) -> Path:
    """`evaluation.output_dir`, or a new folder named by the time."""
    return Path(output_dir) if output_dir else new_folder(Path(output_root) / "evaluation")


def _load_model(cfg: ModelConfig, precision: Precision, files: Sequence[str], device: torch.device) -> MiniGPT4:
    """The model; every checkpoint is loaded once, so that one that does not fit is found before any generation."""
    for path in files:
        read_checkpoint(path)  # finds a missing or broken file before the minutes of loading the model
    model = build_model(replace(cfg, ckpt=None), device, evaluation_dtype(precision, device))
    for path in files:
        load_projection(model, path)
    return model


def _scene_scores(captions: Mapping[str, str], scenes: Mapping[str, Scene], seed: int) -> dict[str, float]:
    return {
        "object_accuracy": object_accuracy(captions, scenes),
        "all_objects_accuracy": all_objects_accuracy(captions, scenes),
        "object_accuracy_shuffled": object_accuracy(swap_images(captions, seed), scenes),
    }

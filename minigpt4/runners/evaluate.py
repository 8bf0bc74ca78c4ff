"""Several checkpoints -> captions of the same images -> one table, one plot, one report."""

from __future__ import annotations

import logging
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from minigpt4 import __version__
from minigpt4.common.checkpoint import read_projection
from minigpt4.common.distributed import Processes, start_processes
from minigpt4.common.errors import ConfigError, DataError
from minigpt4.common.files import new_folder
from minigpt4.common.logging import set_up_logging, track
from minigpt4.common.schema import Config, EvaluationConfig, ModelConfig
from minigpt4.datasets.builders import build_dataset
from minigpt4.datasets.leaks import METADATA_KEY, Fingerprint, ImageSet, Leaks, TrainingRecord, find_leaks, fingerprints
from minigpt4.evaluation.caption import check_metrics, check_references, score_checkpoints
from minigpt4.evaluation.predictions import Prediction, checkpoint_labels, merge_shards, save_predictions
from minigpt4.evaluation.protocol import Protocol
from minigpt4.evaluation.results import (
    CheckpointResult,
    ResultsFolder,
    WrittenResults,
    choose_folder,
    leak_lines,
    write_results,
)
from minigpt4.evaluation.statistics import swap_images
from minigpt4.models.loading import build_model, build_prompt_encoder, choose_precision, load_projection
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.processors.image import open_image
from minigpt4.scenes.truth import Scene, all_objects_accuracy, load_scenes, object_accuracy
from minigpt4.tasks.captioning import Captioning, check_image_ids, select_images

logger = logging.getLogger(__name__)


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
    check_image_ids(dataset.records[index] for index in selection)
    check_references({dataset.records[index].image_id: dataset.records[index].answers for index in selection})
    precision = processes.run_on_main(lambda: choose_precision(cfg.model, processes.device))
    model, trained_on = _load_model(cfg.model, precision.frozen, files, processes.device)
    captioning = Captioning(model, dataset, selection, settings, processes.rank, processes.world_size)
    out_dir = processes.run_on_main(lambda: _output_folder(settings.output_dir, cfg.paths.output_root))

    unreadable: dict[int, str] = {}
    for share in processes.gather(captioning.encode_images()):
        unreadable |= share
    skipped = [unreadable[index] for index in sorted(unreadable)]
    records = [dataset.records[index] for index in selection if index not in unreadable]
    if not records:
        raise DataError(f"none of the {len(selection)} images can be read; the first: {skipped[0]}")
    evaluated = replace(
        ImageSet.of(name, cfg.datasets[name], dataset, [settings.split]),
        count=len(records),
        listed=tuple((record.image_id, image) for record in records for image in record.images),
    )
    leaks = _find_leaks(evaluated, dict(zip(labels, trained_on, strict=True)), processes, settings.compare_images)
    leaked = {label: asdict(found) for label, found in leaks.items() if found and found.is_leak}
    for line in leak_lines(leaked, len(records)):
        logger.warning("%s", line)
    references = {record.image_id: list(record.answers) for record in records}
    protocol = Protocol.of(
        references,
        metrics,
        dataset=name,
        split=settings.split,
        prompt=model.encoder.template.render(captioning.prompt),
        generation=asdict(settings.generation),
        selection=_selection(settings),
        notes={"frozen_weights": model.base} | ({"pictures_left_out": skipped} if skipped else {}),
    )
    paths = {label: str(Path(file).resolve()) for label, file in zip(labels, files, strict=True)}
    with ExitStack() as held:
        folder = processes.run_on_main(lambda: choose_folder(out_dir, protocol, paths, held))
        predictions = {row.checkpoint: list(row.predictions) for row in folder.rows}
        for number, (label, path) in enumerate(zip(labels, files, strict=True), 1):
            load_projection(model, path)
            made = {"checkpoint": path, "skipped": skipped} | protocol.to_dict()
            which = f" ({number} of {len(files)})" if len(files) > 1 else ""
            predictions[label] = _describe(captioning, processes, label, which, list(references), folder, made)
        processes.shutdown()
        if not processes.is_main:
            return None

        captions = {label: {item.image_id: item.caption for item in listed} for label, listed in predictions.items()}
        scores = score_checkpoints(references, captions, metrics, seed=settings.seed)
        more = {label: _more_scores(given, scenes, settings) for label, given in captions.items()}
        earlier = {row.checkpoint: row for row in folder.rows if row.checkpoint not in labels}
        results = []
        for label, listed in predictions.items():
            row, found = earlier.get(label), leaks.get(label)
            place = (
                (row.path, row.file, row.leaks) if row else (paths[label], folder.files[label], found and asdict(found))
            )
            # The earlier evaluation may have measured more than this one.
            known = {"checkpoint", *scores[label].corpus, *scores[label].controls}
            kept = {key: value for key, value in row.values.items() if key not in known} if row else {}
            results.append(CheckpointResult(label, scores[label], listed, kept | more[label], *place))
        return write_results(
            folder.path,
            protocol,
            results,
            image_dir=dataset.images,
            open_image=open_image,
            title=f"{name}: {settings.split} split",
            max_cards=settings.report_samples,
            made={
                "date": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
                "command": shlex.join(sys.argv),
                "version": __version__,
            },
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
        ConfigError: there is none, or one is named twice, be it by another path or a symbolic link.
    """
    files = list(checkpoints) or ([default] if default else [])
    if not files:
        raise ConfigError("no checkpoint to evaluate: name some after --ckpt, or set model.ckpt")
    found: dict[Path, str] = {}
    for file in files:
        target = Path(file).resolve()
        if target in found:
            also = "" if found[target] == file else f", also as {found[target]}"
            raise ConfigError(f"--ckpt: {file} is named twice{also}; name it once")
        found[target] = file
    return files


def _describe(
    captioning: Captioning,
    processes: Processes,
    label: str,
    which: str,
    order: Sequence[str],
    folder: ResultsFolder,
    made: Mapping[str, Any],
) -> list[Prediction]:
    """Captions of all images by the projection that is loaded, written before anything can fail.

    Args:
        captioning: this rank's share of the images.
        processes: all ranks. Each of several writes its share, which is deleted once the file of all is written.
        label: label of the checkpoint.
        which: its place among several checkpoints, for the progress.
        order: ids of all images.
        folder: where the predictions go.
        made: how they are made, as plain data.
    """
    file = folder.path / folder.files[label]
    part = file.with_suffix(f".rank{processes.rank}.json")
    share = captioning.describe(label + which)
    if processes.world_size > 1:
        try:
            save_predictions(part, share, made)
        except OSError as error:
            logger.warning("rank %d cannot keep its share in %s (%s)", processes.rank, part, error.strerror)
    shares = processes.gather(share)
    place = {image_id: number for number, image_id in enumerate(order)}
    listed = sorted((item for given in shares for item in given), key=lambda item: place.get(item.image_id, len(place)))
    processes.run_on_main(lambda: save_predictions(file, listed, made))
    part.unlink(missing_ok=True)
    return merge_shards([listed], order)


def _selection(settings: EvaluationConfig) -> dict[str, Any]:
    """The part of the split that is evaluated, for the protocol."""
    seed = settings.seed if settings.fraction is not None else None
    part = {"limit": settings.limit, "fraction": settings.fraction, "seed": seed}
    return {key: value for key, value in part.items() if value is not None}


def _output_folder(output_dir: str | None, output_root: str) -> Path:
    """`evaluation.output_dir`, or a new folder named by the time.

    Raises:
        ConfigError: no file can be written there.
    """
    folder = Path(output_dir) if output_dir else Path(output_root) / "evaluation"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"evaluation.output_dir: {folder} cannot be written to ({error.strerror}); name another folder by --out"
        ) from error
    return folder if output_dir else new_folder(folder)


def _load_model(
    cfg: ModelConfig, dtype: torch.dtype, files: Sequence[str], device: torch.device
) -> tuple[MiniGPT4, list[str | None]]:
    """The model, and what each checkpoint's metadata says it was trained on.

    Every checkpoint is loaded once, so that one that does not fit is found before any generation.
    """
    # A missing or broken file is found before the minutes of loading the model.
    trained_on = [read_projection(path)[1].get(METADATA_KEY) for path in files]
    model = build_model(replace(cfg, ckpt=None), device, dtype)
    for path in files:
        load_projection(model, path)
    return model, trained_on


def _find_leaks(
    evaluated: ImageSet, recorded: Mapping[str, str | None], processes: Processes, open_images: bool
) -> dict[str, Leaks | None]:
    """What each checkpoint was trained on among the evaluated images; None where it does not say.

    Args:
        evaluated: the evaluated images.
        recorded: label of each checkpoint -> its record; None: it has none.
        processes: all ranks; each opens a share of the images.
        open_images: open the images to compare their content; otherwise only ids and paths are compared.
    """
    # Checkpoints of one run share a record.
    labels = {text: label for label, text in recorded.items()}
    records = {text: TrainingRecord.from_metadata(text, label) for text, label in labels.items()}
    known = [record for record in records.values() if record is not None]
    prints: dict[Path, Fingerprint] = {}
    if open_images and known:
        paths = sorted({path for images in (evaluated, *(i for r in known for i in r.sets)) for path in images.paths()})
        mine = paths[processes.rank :: processes.world_size]
        read = track(fingerprints(mine), "images trained on and evaluated", "images", len(mine))
        for share in processes.gather({path: found for path, found in read if isinstance(found, Fingerprint)}):
            prints |= share
    found = {text: find_leaks(evaluated, record, prints) if record else None for text, record in records.items()}
    return {label: found[text] for label, text in recorded.items()}


def _more_scores(
    captions: Mapping[str, str], scenes: Mapping[str, Scene] | None, settings: EvaluationConfig
) -> dict[str, float]:
    """What else is measured of a checkpoint's captions: objects of drawn scenes, and fluency."""
    more: dict[str, float] = {}
    if scenes is not None:
        more = {
            "object_accuracy": object_accuracy(captions, scenes),
            "all_objects_accuracy": all_objects_accuracy(captions, scenes),
            "object_accuracy_shuffled": object_accuracy(swap_images(captions, settings.seed), scenes),
        }
    if settings.fluency:
        from minigpt4.evaluation.fluency import fluency_scores

        more |= fluency_scores(captions.values())
    return more

"""Several checkpoints -> answers about the same images -> one table, one plot, one report, for each split."""

from __future__ import annotations

import logging
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import torch

from minigpt4 import __version__
from minigpt4.common.checkpoint import read_projection
from minigpt4.common.distributed import Processes, start_processes
from minigpt4.common.errors import ConfigError, DataError, MissingSplitError
from minigpt4.common.files import new_folder
from minigpt4.common.logging import set_up_logging, track
from minigpt4.common.schema import Config, DatasetConfig, EvaluationConfig, EvaluationTask, ModelConfig
from minigpt4.common.types import Record
from minigpt4.datasets.builders import build_dataset, evaluated_datasets, require_evaluated_splits
from minigpt4.datasets.instruction import InstructionDataset
from minigpt4.datasets.leaks import METADATA_KEY, Fingerprint, ImageSet, Leaks, TrainingRecord, find_leaks, fingerprints
from minigpt4.evaluation.caption import check_metrics, check_references, score_checkpoints
from minigpt4.evaluation.predictions import Prediction, Protocol, checkpoint_labels, merge_shards, save_predictions
from minigpt4.evaluation.results import (
    CheckpointResult,
    ResultsFolder,
    WrittenResults,
    choose_folder,
    leak_lines,
    write_results,
)
from minigpt4.evaluation.statistics import Scores, swap_images
from minigpt4.models.loading import build_model, build_prompt_encoder, choose_precision, load_projection
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.processors.image import open_image
from minigpt4.scenes.truth import all_objects_accuracy, load_scenes, object_accuracy
from minigpt4.tasks.captioning import Captioning, check_image_ids, select_images

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scored:
    """What the answers of one checkpoint score.

    Attributes:
        scores: scores of the corpus and of each image or question.
        more: further quantities of the row.
        kinds: kind of question -> metric -> score.
    """

    scores: Scores
    more: Mapping[str, float]
    kinds: Mapping[str, Mapping[str, float]]


class Asked(Interface):
    """What one evaluation asks about images, and how it scores the answers.

    Attributes:
        task: name of the task in the protocol; empty: captions.
        metrics: names of the metrics in the protocol.
    """

    task: str
    metrics: tuple[str, ...]

    def references(self, record: Record) -> Sequence[str]:
        """The truth about a record, as it is saved beside the answer."""

    def answering(
        self, model: MiniGPT4, dataset: InstructionDataset, selection: Sequence[int], rank: int, world_size: int
    ) -> Captioning:
        """What makes one rank's share of the answers."""

    def score(
        self, references: Mapping[str, Sequence[str]], predictions: Mapping[str, Sequence[Prediction]]
    ) -> Mapping[str, Scored]:
        """The scores of each checkpoint's predictions."""


class Captions:
    """Descriptions of images, scored by caption metrics.

    Args:
        settings: the `evaluation` section.
        records: the images.

    Raises:
        MiniGPT4Error: a metric cannot be computed here, or the truth lacks an image.
    """

    task = ""

    def __init__(self, settings: EvaluationConfig, records: Sequence[Record]) -> None:
        self.settings = settings
        self.metrics = check_metrics(settings.metrics)
        check_references({record.image_id: record.answers for record in records})
        self._scenes = load_scenes(settings.scenes) if settings.scenes else None
        self._objects = None
        if settings.objects:
            from minigpt4.runners.objects import read_objects

            self._objects = read_objects(settings.objects, settings.object_words)
            for record in records:
                self._objects.of(record.image)

    def references(self, record: Record) -> Sequence[str]:
        """The reference captions."""
        return record.answers

    def answering(
        self, model: MiniGPT4, dataset: InstructionDataset, selection: Sequence[int], rank: int, world_size: int
    ) -> Captioning:
        """As `Asked.answering`."""
        return Captioning(model, dataset, selection, self.settings, rank, world_size)

    def score(
        self, references: Mapping[str, Sequence[str]], predictions: Mapping[str, Sequence[Prediction]]
    ) -> dict[str, Scored]:
        """As `Asked.score`; all captions are tokenized together."""
        captions = {label: {item.image_id: item.caption for item in listed} for label, listed in predictions.items()}
        scores = score_checkpoints(references, captions, self.metrics, seed=self.settings.seed)
        return {label: Scored(scores[label], self._more(listed), {}) for label, listed in predictions.items()}

    def _more(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """What else is measured of a checkpoint's captions: objects named rightly or wrongly, and fluency."""
        captions = {item.image_id: item.caption for item in predictions}
        more: dict[str, float] = {}
        if self._scenes is not None:
            more = {
                "object_accuracy": object_accuracy(captions, self._scenes),
                "all_objects_accuracy": all_objects_accuracy(captions, self._scenes),
                "object_accuracy_shuffled": object_accuracy(swap_images(captions, self.settings.seed), self._scenes),
            }
        if self._objects is not None:
            images = {item.image_id: item.filename for item in predictions}
            more |= self._objects.chair(captions, images)
            if len(captions) > 1:
                shuffled = self._objects.chair(swap_images(captions, self.settings.seed), images)
                more |= {f"{name}_shuffled": value for name, value in shuffled.items()}
        if self.settings.fluency:
            from minigpt4.evaluation.fluency import fluency_scores

            more |= fluency_scores(captions.values())
        return more


@dataclass(frozen=True)
class Subject:
    """One split of a dataset, to be evaluated.

    Attributes:
        name: name of the dataset.
        split: name of the split.
        dataset: the records of the split.
        images: where their images come from.
        selection: indices of those to evaluate.
        asked: what is asked about them.
    """

    name: str
    split: str
    dataset: InstructionDataset
    images: ImageSet
    selection: Sequence[int]
    asked: Asked


@dataclass(frozen=True)
class Candidates:
    """The model and the checkpoints to evaluate.

    Attributes:
        model: the model, with any of the checkpoints.
        files: label of each checkpoint -> its path as it was given.
        trained_on: label of each checkpoint -> its record of what it was trained on; None: it has none.
        prints: fingerprints of the images that were opened, to be found among others.
    """

    model: MiniGPT4
    files: Mapping[str, str]
    trained_on: Mapping[str, str | None]
    prints: dict[Path, Fingerprint] = field(default_factory=dict)

    @property
    def paths(self) -> dict[str, str]:
        """Label of each checkpoint -> its absolute path."""
        return {label: str(Path(file).resolve()) for label, file in self.files.items()}


@dataclass(frozen=True)
class Answered:
    """The answers about one subject, which are in their files.

    Attributes:
        subject: what they are about.
        protocol: how they were made.
        folder: where the results go.
        predictions: label of each checkpoint -> its answers, those of earlier rows too.
        leaks: what the checkpoints were trained on among the images.
    """

    subject: Subject
    protocol: Protocol
    folder: ResultsFolder
    predictions: Mapping[str, Sequence[Prediction]]
    leaks: Mapping[str, Leaks | None]


def evaluate(cfg: Config, checkpoints: Sequence[str]) -> list[WrittenResults]:
    """Let each checkpoint answer about the images of each dataset and split, save the answers, then score them.

    Everything that can fail early is tried first: metrics and their Java, the splits, every checkpoint. All answers are
    saved before any is scored.

    Args:
        cfg: all settings.
        checkpoints: files with a projection each; empty: the one of `model.ckpt`.

    Returns:
        Table and paths of what was written for each dataset and split, on rank 0; nothing on the others.

    Raises:
        MiniGPT4Error: a metric, path, split or checkpoint cannot be used.
    """
    settings = cfg.evaluation
    processes = start_processes(cfg.run.device)
    set_up_logging(processes.rank)
    files = checkpoint_files(checkpoints, cfg.model.ckpt)
    labels = checkpoint_labels(files)
    subjects = _subjects(settings, cfg.datasets, cfg.model, cfg.run.seed)
    precision = processes.run_on_main(lambda: choose_precision(cfg.model, processes.device))
    model, trained_on = _load_model(cfg.model, precision.frozen, files, processes.device)
    candidates = Candidates(model, dict(zip(labels, files, strict=True)), dict(zip(labels, trained_on, strict=True)))
    out_dir = processes.run_on_main(lambda: _output_folder(settings.output_dir, cfg.paths.output_root))
    with ExitStack() as held:
        answered = []
        for subject in subjects:
            out = out_dir if len(subjects) == 1 else out_dir / f"{subject.name}_{subject.split}"
            answered.append(_answer(subject, candidates, settings, processes, out, held))
        processes.shutdown()
        return [_write(item, candidates.paths, settings) for item in answered] if processes.is_main else []


def _subjects(
    settings: EvaluationConfig, datasets: Mapping[str, DatasetConfig], model: ModelConfig, seed: int
) -> list[Subject]:
    """The splits to evaluate, each with what is asked about it.

    Args:
        settings: the `evaluation` section.
        datasets: configuration of each dataset by name.
        model: the model's configuration.
        seed: part of the name of every random generator of a dataset.

    Raises:
        MiniGPT4Error: a dataset or split does not exist, or its records cannot be evaluated.
    """
    encoder = build_prompt_encoder(model)
    subjects: list[Subject] = []
    names = evaluated_datasets(settings.datasets, list(datasets))
    missing: dict[str, dict[str, MissingSplitError]] = {name: {} for name in names}
    for name in names:
        for split in settings.splits:
            try:
                dataset = build_dataset(name, datasets[name], model, encoder, [split], seed=seed, train=False)
            except MissingSplitError as error:
                missing[name][split] = error
                continue
            selection = select_images(dataset.records, settings.limit, settings.fraction, settings.seed)
            records = [dataset.records[index] for index in selection]
            check_image_ids(records)
            images = ImageSet.of(name, datasets[name], dataset, [split])
            asked = _asked(settings, settings.task or datasets[name].task, records)
            subjects.append(Subject(name, split, dataset, images, selection, asked))
    require_evaluated_splits(missing, settings.splits)
    for absent in (error for errors in missing.values() for error in errors.values()):
        logger.warning("left out: %s", absent)
    return subjects


def _asked(settings: EvaluationConfig, task: EvaluationTask, records: Sequence[Record]) -> Asked:
    if task is EvaluationTask.caption:
        return Captions(settings, records)
    from minigpt4.runners.questions import Questions

    return Questions(settings, task, records)


def _answer(
    subject: Subject,
    candidates: Candidates,
    settings: EvaluationConfig,
    processes: Processes,
    out: Path,
    held: ExitStack,
) -> Answered:
    """The answers of each checkpoint about one subject, written to their files.

    Args:
        subject: what is evaluated.
        candidates: the model and its checkpoints.
        settings: the `evaluation` section.
        processes: all ranks.
        out: folder asked for.
        held: keeps the folder of the results for this process.

    Raises:
        DataError: none of the images can be read.
    """
    records, asked = subject.dataset.records, subject.asked
    model, files = candidates.model, candidates.files
    answering = asked.answering(model, subject.dataset, subject.selection, processes.rank, processes.world_size)
    unreadable: dict[int, str] = {}
    for share in processes.gather(answering.encode_images()):
        unreadable |= share
    skipped = list(dict.fromkeys(unreadable[index] for index in sorted(unreadable)))
    readable = [records[index] for index in subject.selection if index not in unreadable]
    if not readable:
        raise DataError(f"none of the {len(subject.selection)} images can be read; the first: {skipped[0]}")
    shown = dict.fromkeys((record.image_id, image) for record in readable for image in record.images)
    evaluated = replace(subject.images, count=len(readable), listed=tuple(shown))
    leaks = _find_leaks(evaluated, candidates, processes, settings.compare_images)
    leaked = {label: asdict(found) for label, found in leaks.items() if found and found.is_leak}
    references = {record.image_id: list(asked.references(record)) for record in readable}
    protocol = Protocol.of(
        references,
        asked.metrics,
        dataset=subject.name,
        split=subject.split,
        prompt=model.encoder.template.render(answering.prompt),
        generation=asdict(settings.generation),
        selection=_selection(settings),
        notes={"frozen_weights": model.base} | ({"pictures_left_out": skipped} if skipped else {}),
        task=asked.task,
    )
    for line in leak_lines(leaked, protocol.images, protocol.unit):
        logger.warning("%s", line)
    folder = processes.run_on_main(lambda: choose_folder(out, protocol, candidates.paths, held))
    predictions = {row.checkpoint: list(row.predictions) for row in folder.rows}
    shares: dict[str, list[Prediction]] = {label: [] for label in files}
    for last in answering.parts():
        for number, (label, file) in enumerate(files.items(), 1):
            load_projection(model, file)
            which = f" ({number} of {len(files)})" if len(files) > 1 else ""
            shares[label] += answering.describe(label + which)
            target = folder.path / folder.files[label]
            made = {"checkpoint": file, "skipped": skipped} | protocol.to_dict()
            if last:
                predictions[label] = _collect(shares[label], processes, list(references), target, made)
            else:
                _keep_share(shares[label], processes.rank, target, made)
    return Answered(subject, protocol, folder, predictions, leaks)


def _keep_share(share: Sequence[Prediction], rank: int, file: Path, made: Mapping[str, Any]) -> Path:
    """Write the predictions of one rank beside the file of all."""
    part = file.with_suffix(f".rank{rank}.json")
    try:
        save_predictions(part, share, made)
    except OSError as error:
        logger.warning("rank %d cannot keep its share in %s (%s)", rank, part, error.strerror)
    return part


def _collect(
    share: Sequence[Prediction], processes: Processes, order: Sequence[str], file: Path, made: Mapping[str, Any]
) -> list[Prediction]:
    """The predictions of all ranks, written before anything can fail.

    Args:
        share: predictions of this rank.
        processes: all ranks. Each of several writes its share, which is deleted once the file of all is written.
        order: ids of all images or questions.
        file: file of all predictions.
        made: how they are made, as plain data.
    """
    part = file.with_suffix(f".rank{processes.rank}.json")
    if processes.world_size > 1:
        _keep_share(share, processes.rank, file, made)
    shares = processes.gather(share)
    place = {image_id: number for number, image_id in enumerate(order)}
    listed = sorted((item for given in shares for item in given), key=lambda item: place.get(item.image_id, len(place)))
    processes.run_on_main(lambda: save_predictions(file, listed, made))
    part.unlink(missing_ok=True)
    return merge_shards([listed], order)


def _write(answered: Answered, paths: Mapping[str, str], settings: EvaluationConfig) -> WrittenResults:
    """Score the answers about one subject and write the results."""
    subject, folder, leaks = answered.subject, answered.folder, answered.leaks
    references = {item.image_id: list(item.references) for item in next(iter(answered.predictions.values()))}
    scored = subject.asked.score(references, answered.predictions)
    earlier = {row.checkpoint: row for row in folder.rows if row.checkpoint not in paths}
    results = []
    for label, listed in answered.predictions.items():
        row, found, one = earlier.get(label), leaks.get(label), scored[label]
        path, file = (row.path, row.file) if row else (paths[label], folder.files[label])
        leaked = row.leaks if row else asdict(found) if found else None
        # The earlier evaluation may have measured more than this one.
        known = {"checkpoint", *one.scores.corpus, *one.scores.controls}
        kept = {key: value for key, value in row.values.items() if key not in known} if row else {}
        more = kept | dict(one.more)
        results.append(CheckpointResult(label, one.scores, listed, more, path, file, leaked, one.kinds))
    return write_results(
        folder.path,
        answered.protocol,
        results,
        image_dir=subject.dataset.images,
        open_image=open_image,
        title=f"{subject.name}: {subject.split} split",
        max_cards=settings.report_samples,
        made={
            "date": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
            "command": shlex.join(sys.argv),
            "version": __version__,
        },
    )


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
    evaluated: ImageSet, candidates: Candidates, processes: Processes, open_images: bool
) -> dict[str, Leaks | None]:
    """What each checkpoint was trained on among the evaluated images; None where it does not say.

    Args:
        evaluated: the evaluated images.
        candidates: the checkpoints; fingerprints of images that are opened are kept there.
        processes: all ranks; each opens a share of the images.
        open_images: open the images to compare their content; otherwise only ids and paths are compared.
    """
    # Checkpoints of one run share a record.
    labels = {text: label for label, text in candidates.trained_on.items()}
    records = {text: TrainingRecord.from_metadata(text, label) for text, label in labels.items()}
    known = [record for record in records.values() if record is not None]
    if open_images and known:
        sets = (evaluated, *(images for record in known for images in record.sets))
        paths = sorted({path for images in sets for path in images.paths()} - candidates.prints.keys())
        mine = paths[processes.rank :: processes.world_size]
        read = track(fingerprints(mine), "images trained on and evaluated", "images", len(mine))
        for share in processes.gather({path: found for path, found in read if isinstance(found, Fingerprint)}):
            candidates.prints.update(share)
    prints = candidates.prints
    found = {text: find_leaks(evaluated, record, prints) if record else None for text, record in records.items()}
    return {label: found[text] for label, text in candidates.trained_on.items()}

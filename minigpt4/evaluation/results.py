"""What an evaluation leaves behind: metrics.json, scores of each image, plot and report; earlier rows are kept."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from minigpt4.common.errors import MetricError, MiniGPT4Error, first_few
from minigpt4.common.files import hold, read_json, remove_temporary_files, write_json, write_text, writing
from minigpt4.evaluation.predictions import Prediction, Protocol, load_predictions, predictions_file, references_sha256
from minigpt4.evaluation.report import ImageResult, OpenImage, write_report
from minigpt4.evaluation.statistics import Scores, bootstrap_intervals, compare, intervals_note
from minigpt4.evaluation.table import HEADLINES, ScoreTable, kind_table
from minigpt4.evaluation.trends import panel_svgs, plot_trends, write_svg

logger = logging.getLogger(__name__)
BOX_TASKS = ("refer", "detection")
"""Tasks whose references are boxes."""
LOCK = ".evaluating"
"""File in a folder of results that says which process is writing to it."""


@dataclass(frozen=True)
class EarlierRow:
    """A row of a table that is there already.

    Attributes:
        checkpoint: label of the checkpoint.
        path: absolute path of the checkpoint.
        file: name of its predictions file.
        values: the row in metrics.json.
        predictions: its predictions.
        leaks: its leaks in metrics.json.
    """

    checkpoint: str
    path: str
    file: str
    values: Mapping[str, Any]
    predictions: Sequence[Prediction]
    leaks: Mapping[str, Any] | None


@dataclass(frozen=True)
class ResultsFolder:
    """Where the results of an evaluation go.

    Attributes:
        path: path of the folder.
        rows: rows that its table has already.
        files: label of each checkpoint to evaluate -> name of its predictions file.
    """

    path: Path
    rows: Sequence[EarlierRow]
    files: Mapping[str, str]


def choose_folder(
    folder: Path, protocol: Protocol, checkpoints: Mapping[str, str], held: ExitStack | None = None
) -> ResultsFolder:
    """The folder for new results, created if missing.

    It is the first of `folder`, `folder`-2, `folder`-3 and so on that no other evaluation is writing to and that holds
    no results, or results of the same protocol. A row with the label and the path of a checkpoint to evaluate again is
    to be replaced.

    Args:
        folder: folder that was asked for.
        protocol: how the new predictions are made and scored.
        checkpoints: label -> absolute path of the checkpoints to evaluate.
        held: keeps the folder for this process until it is closed; None: the folder is not kept.

    Raises:
        DataError: The folder cannot be written to.
    """
    number, reason = 1, None
    base = folder if folder.name.strip(".") else folder.resolve()
    while True:
        candidate = folder if number == 1 else base.with_name(f"{base.name}-{number}")
        with writing(candidate), ExitStack() as attempt:
            try:
                attempt.enter_context(hold(candidate / LOCK, candidate))
                found = read_folder(candidate, protocol, checkpoints)
            except MiniGPT4Error as error:
                number, reason = number + 1, reason or error
                continue
            if held is not None:
                held.enter_context(attempt.pop_all())
        if reason is not None:
            logger.warning("%s; nothing there is overwritten, and the new results go to %s", reason, candidate)
        if found.rows:
            logger.info("%s: its table keeps the rows %s", candidate, ", ".join(row.checkpoint for row in found.rows))
        remove_temporary_files(candidate, "*")
        return found


def read_folder(folder: Path, protocol: Protocol, checkpoints: Mapping[str, str]) -> ResultsFolder:
    """What a folder holds, if the results of the checkpoints can join it.

    Args:
        folder: the folder; it may be missing.
        protocol: how the new predictions are made and scored.
        checkpoints: label -> absolute path of the checkpoints to evaluate.

    Raises:
        MiniGPT4Error: the folder holds results or predictions that cannot share a table with the new ones, or that
            would be overwritten.
    """
    metrics = folder / "metrics.json"
    rows = _read_rows(metrics, protocol) if metrics.exists() else []
    for row in rows:
        path = checkpoints.get(row.checkpoint)
        if path not in (None, row.path):
            raise MetricError(f"{metrics} has a row '{row.checkpoint}' of another checkpoint ({row.path})")
        if path is None and row.path in checkpoints.values():
            raise MetricError(f"{metrics} has a row of {row.path} under another name, '{row.checkpoint}'")
    files = {row.checkpoint: row.file for row in rows}
    for label, path in checkpoints.items():
        if label not in files:
            files[label] = predictions_file(label, files.values())
            _check_unscored(folder / files[label], protocol, path)
    return ResultsFolder(folder, rows, {label: files[label] for label in checkpoints})


def _read_rows(metrics: Path, protocol: Protocol) -> list[EarlierRow]:
    """The rows of metrics.json with their predictions.

    Raises:
        MiniGPT4Error: a file cannot be read or has another protocol.
    """
    content = read_json(metrics)
    try:
        made = dict(content["protocol"])
        listed = [(row, row["checkpoint"], content["checkpoints"][row["checkpoint"]]) for row in content["rows"]]
        entries = [(dict(row), label, entry["path"], entry["predictions"]) for row, label, entry in listed]
        leaks = dict(content.get("leaks", {}))
    except (KeyError, TypeError, ValueError):
        raise MetricError(f"{metrics} does not name the checkpoint and the predictions of each row") from None
    changed = protocol.differences(made)
    if changed:
        raise MetricError(f"{metrics} has another protocol ({first_few(changed, 3)})")
    rows = []
    for values, label, path, name in entries:
        file = load_predictions(metrics.parent / name)
        if references_sha256(file.references()) != protocol.references_sha256 or protocol.differences(file.protocol):
            raise MetricError(f"{metrics.parent / name} no longer holds the predictions of {metrics}")
        rows.append(EarlierRow(label, path, name, values, file.predictions, leaks.get(label)))
    return rows


def _check_unscored(path: Path, protocol: Protocol, checkpoint: str) -> None:
    """Make sure that a file with predictions that were never scored is overwritten by the same predictions only.

    Raises:
        MiniGPT4Error: the file exists, and cannot be read or holds other predictions.
    """
    if not path.exists():
        return
    made = load_predictions(path).protocol
    if protocol.differences(made) or str(Path(str(made.get("checkpoint"))).resolve()) != checkpoint:
        raise MetricError(f"{path} holds other predictions")


@dataclass(frozen=True)
class CheckpointResult:
    """One checkpoint's row.

    Attributes:
        checkpoint: label of the checkpoint, e.g. `stage 1` or `epoch 0`.
        scores: what its predictions score.
        predictions: one prediction per image, with the references.
        more: further quantities of the row, e.g. {"object_accuracy": 0.93}.
        path: path of the checkpoint, empty where unknown.
        file: name of its predictions file in the folder of the results, empty where there is none.
        leaks: evaluated images that it was trained on, as `Leaks` in plain form; None: it does not say what it was
            trained on.
        kinds: kind of question -> {"questions": their number, metric: score, ...}; empty where there are no kinds.
    """

    checkpoint: str
    scores: Scores
    predictions: Sequence[Prediction]
    more: Mapping[str, float] = field(default_factory=dict)
    path: str = ""
    file: str = ""
    leaks: Mapping[str, Any] | None = None
    kinds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """The row of metrics.json."""
        return {"checkpoint": self.checkpoint, **self.scores.corpus, **self.scores.controls, **self.more}


@dataclass(frozen=True)
class WrittenResults:
    """The files written, and the table to print.

    Attributes:
        table: checkpoints and their scores.
        kinds: the scores of each kind of question, a table for each metric.
        metrics: path of metrics.json.
        per_image: path of per_image_scores.csv.
        trends: path of metric_trends.png; metric_trends.svg is beside it.
        report: path of report.html.
        example: path of one of the images, None where unknown.
    """

    table: ScoreTable
    kinds: Sequence[ScoreTable]
    metrics: Path
    per_image: Path
    trends: Path
    report: Path
    example: Path | None


def write_results(
    out_dir: str | Path,
    protocol: Protocol,
    results: Sequence[CheckpointResult],
    *,
    image_dir: str | Path | None = None,
    open_image: OpenImage | None = None,
    title: str = "Evaluation",
    max_cards: int = 200,
    made: Mapping[str, str] = MappingProxyType({}),
) -> WrittenResults:
    """Write every file of an evaluation.

    The same evaluation gives the same files, but for `made`: it stands under this name in metrics.json, in the last
    line of the report, and nowhere else.

    Args:
        out_dir: folder of the files, created if missing.
        protocol: how the predictions were made and scored.
        results: one result per checkpoint, all of the same images, in the order of training.
        image_dir: folder that the predictions' file names are relative to.
        open_image: opens an image for the report; without it or `image_dir` the report shows no images.
        title: heading of the plot and the report.
        max_cards: maximum number of images in the report.
        made: when, by which command and by which version: {"date", "command", "version"}.

    Returns:
        The table and the paths.

    Raises:
        MetricError: there is no result, or two have the same label.
    """
    labels = [result.checkpoint for result in results]
    if not labels:
        raise MetricError("there is no checkpoint's result to write")
    if len(set(labels)) < len(labels):
        raise MetricError(f"two checkpoints have the same label: {', '.join(labels)}")
    out = Path(out_dir)
    rows = [result.row() for result in results]
    intervals = {result.checkpoint: bootstrap_intervals(result.scores.per_image) for result in results}
    comparisons = compare({result.checkpoint: result.scores for result in results}, unit=protocol.unit)
    leaks = {result.checkpoint: result.leaks for result in results}
    known = ["Trained on:", *leak_lines(leaks, protocol.images, protocol.unit)]
    content: dict[str, Any] = {"protocol": protocol.to_dict(), "rows": rows, "leaks": leaks}
    checkpoints = {item.checkpoint: {"path": item.path, "predictions": item.file} for item in results if item.file}
    if checkpoints:
        content["checkpoints"] = checkpoints
    if comparisons:
        content["comparisons"] = comparisons.to_dict()
    if any(intervals.values()):
        content |= {"intervals_95": intervals, "intervals_95_note": intervals_note(protocol.unit)}
    kinds = {result.checkpoint: result.kinds for result in results}
    if any(kinds.values()):
        content["kinds"] = kinds
    by_kind = [table for metric in HEADLINES if (table := kind_table(metric, kinds))]
    summary = protocol.summary()
    images = _results_by_image(results, Path(image_dir) if image_dir else None, protocol.task)
    written = WrittenResults(
        kinds=by_kind,
        table=ScoreTable(rows, title, "\n".join([summary, *([comparisons.footnote()] if comparisons else []), *known])),
        metrics=out / "metrics.json",
        per_image=out / "per_image_scores.csv",
        trends=out / "metric_trends.png",
        report=out / "report.html",
        example=images[0].path if images else None,
    )
    if made:
        content["made"] = dict(made)
    write_json(written.metrics, content)
    write_text(written.per_image, _csv(results))
    panels = panel_svgs(rows, intervals)
    plot_trends(written.trends, rows, intervals, title=title, subtitle=summary)
    write_svg(written.trends.with_suffix(".svg"), panels, title=title, subtitle=summary)
    write_report(
        written.report,
        protocol,
        rows,
        images,
        title=title,
        trends=panels,
        kinds=by_kind,
        intervals=intervals,
        comparisons=comparisons,
        leaks=known[1:],
        max_cards=max_cards,
        open_image=open_image,
        made=made,
    )
    return written


def leak_lines(leaks: Mapping[str, Mapping[str, Any] | None], images: int, unit: str = "images") -> list[str]:
    """What checkpoints were trained on among the evaluated images, a line for all that are alike.

    Args:
        leaks: label of each checkpoint -> its leaks as in metrics.json; None: it does not say what it was trained on.
        images: number of evaluated images, or questions.
        unit: which of the two.
    """
    groups: list[tuple[Mapping[str, Any] | None, list[str]]] = []
    for label, found in leaks.items():
        alike = next((labels for other, labels in groups if other == found), None)
        if alike is None:
            groups.append((found, [label]))
        else:
            alike.append(label)
    return [f"{first_few(labels, 8)}: {_leak_text(found, f'{images:,} {unit}')}" for found, labels in groups]


def _leak_text(found: Mapping[str, Any] | None, evaluated: str) -> str:
    if found is None:
        return f"not recorded whether any of the {evaluated} was trained on"
    if found["images"]:
        examples = f", such as {found['examples'][0]}" if found["examples"] else ""
        text = (
            f"LEAK: {found['images']:,} of the {evaluated} were trained on ({found['ids']:,} same ids, "
            f"{found['files']:,} same files, {found['pixels']:,} same pixels, {found['near_copies']:,} near copies)"
            f"{examples}; scores on them measure memory"
        )
    else:
        text = (
            f"no leak: the {evaluated} were compared with the {found['trained_images']:,} images trained on, by id, "
            "file, pixels and looks"
        )
    if found["not_opened"]:
        text += f"; {found['not_opened']:,} of those trained on were compared by id and path only"
    if not found["complete"]:
        text += "; what its starting checkpoint was trained on is not recorded"
    if found["validated_and_trained"]:
        text += (
            f"; LEAK: the validation used {found['validated_and_trained']:,} images that were trained on, so its "
            "choice of the best epoch says little"
        )
    return text


def _results_by_image(results: Sequence[CheckpointResult], image_dir: Path | None, task: str) -> list[ImageResult]:
    """The images, or questions, of the first checkpoint's predictions with every checkpoint's answer and scores."""
    if task in BOX_TASKS:
        from minigpt4.evaluation.questions import true_boxes
    captions = {result.checkpoint: {item.image_id: item.caption for item in result.predictions} for result in results}
    return [
        ImageResult(
            image_id=item.image_id,
            references=item.references,
            predictions={label: given.get(item.image_id, "") for label, given in captions.items()},
            scores={result.checkpoint: result.scores.per_image.get(item.image_id, {}) for result in results},
            question=str(item.extra.get("question", "")),
            kind=str(item.extra.get("kind", "")),
            boxes=true_boxes(item) if task in BOX_TASKS else None,
            filename=item.filename,
            path=image_dir / item.filename if image_dir and item.filename else None,
        )
        for item in results[0].predictions
    ]


def _csv(results: Sequence[CheckpointResult]) -> str:
    """One line per checkpoint and image, for a spreadsheet or pandas."""
    metrics = list(dict.fromkeys(name for result in results for name in result.scores.corpus))
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["checkpoint", "image_id", "filename", "caption", *metrics])
    for result in results:
        for item in result.predictions:
            values = result.scores.per_image.get(item.image_id, {})
            shown = [f"{values[name]:.6f}" if name in values else "" for name in metrics]
            writer.writerow([result.checkpoint, item.image_id, item.filename, item.caption, *shown])
    return buffer.getvalue()

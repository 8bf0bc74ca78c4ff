"""The files of an evaluation: metrics.json, per_image_scores.csv, metric_trends.png and report.html."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from minigpt4.common.errors import MetricError
from minigpt4.common.files import write_json, write_text
from minigpt4.evaluation.caption import CaptionScores
from minigpt4.evaluation.comparisons import compare
from minigpt4.evaluation.predictions import Prediction
from minigpt4.evaluation.protocol import Protocol
from minigpt4.evaluation.report import ImageResult, OpenImage, write_report
from minigpt4.evaluation.statistics import NOTE, bootstrap_intervals
from minigpt4.evaluation.table import build_table
from minigpt4.evaluation.trends import plot_trends


@dataclass(frozen=True)
class CheckpointResult:
    """One checkpoint's row.

    Attributes:
        checkpoint: label of the checkpoint, e.g. `stage 1` or `epoch 0`.
        scores: caption metrics.
        predictions: one prediction per image, with the references.
        more: further quantities of the row, e.g. {"object_accuracy": 0.93}.
        path: path of the checkpoint, empty where unknown.
        file: name of its predictions file in the folder of the results, empty where there is none.
    """

    checkpoint: str
    scores: CaptionScores
    predictions: Sequence[Prediction]
    more: Mapping[str, float] = field(default_factory=dict)
    path: str = ""
    file: str = ""

    def row(self) -> dict[str, Any]:
        """The row of metrics.json."""
        return {"checkpoint": self.checkpoint, **self.scores.corpus, **self.scores.controls, **self.more}


@dataclass(frozen=True)
class WrittenResults:
    """The files written, and the table to print.

    Attributes:
        table: checkpoints and their scores.
        metrics: path of metrics.json.
        per_image: path of per_image_scores.csv.
        trends: path of metric_trends.png.
        report: path of report.html.
        example: path of one of the images, None where unknown.
    """

    table: Table
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
) -> WrittenResults:
    """Write every file of an evaluation.

    Args:
        out_dir: folder of the files, created if missing.
        protocol: how the predictions were made and scored.
        results: one result per checkpoint, all of the same images, in the order of training.
        image_dir: folder that the predictions' file names are relative to.
        open_image: opens an image for the report; without it or `image_dir` the report shows no images.
        title: heading of the plot and the report.
        max_cards: maximum number of images in the report.

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
    comparisons = compare({result.checkpoint: result.scores for result in results})
    content: dict[str, Any] = {"protocol": protocol.to_dict(), "rows": rows}
    checkpoints = {item.checkpoint: {"path": item.path, "predictions": item.file} for item in results if item.file}
    if checkpoints:
        content["checkpoints"] = checkpoints
    if comparisons:
        content["comparisons"] = comparisons.to_dict()
    if any(intervals.values()):
        content |= {"intervals_95": intervals, "intervals_95_note": NOTE}
    summary = protocol.summary()
    images = _results_by_image(results, Path(image_dir) if image_dir else None)
    written = WrittenResults(
        table=build_table(
            rows, title=title, caption="\n".join([summary, *([comparisons.footnote()] if comparisons else [])])
        ),
        metrics=out / "metrics.json",
        per_image=out / "per_image_scores.csv",
        trends=out / "metric_trends.png",
        report=out / "report.html",
        example=images[0].path if images else None,
    )
    write_json(written.metrics, content)
    write_text(written.per_image, _csv(results))
    plot_trends(written.trends, rows, intervals, title=title, subtitle=summary)
    write_report(
        written.report,
        protocol,
        rows,
        images,
        title=title,
        trends=written.trends,
        intervals=intervals,
        comparisons=comparisons,
        max_cards=max_cards,
        open_image=open_image,
    )
    return written


def _results_by_image(results: Sequence[CheckpointResult], image_dir: Path | None) -> list[ImageResult]:
    """The images of the first checkpoint's predictions with every checkpoint's caption and scores."""
    captions = {result.checkpoint: {item.image_id: item.caption for item in result.predictions} for result in results}
    return [
        ImageResult(
            image_id=item.image_id,
            references=item.references,
            predictions={label: given.get(item.image_id, "") for label, given in captions.items()},
            scores={result.checkpoint: result.scores.per_image.get(item.image_id, {}) for result in results},
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

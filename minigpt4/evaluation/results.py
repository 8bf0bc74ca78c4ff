"""What an evaluation leaves behind: metrics.json, per_image_scores.csv, metric_trends.png and report.html."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from minigpt4.common.errors import MetricError
from minigpt4.common.files import write_atomically, write_json
from minigpt4.evaluation.caption import CaptionScores
from minigpt4.evaluation.predictions import Prediction
from minigpt4.evaluation.protocol import Protocol
from minigpt4.evaluation.report import Pictures, Sample, write_report
from minigpt4.evaluation.statistics import NOTE, bootstrap_intervals
from minigpt4.evaluation.table import build_table
from minigpt4.evaluation.trends import plot_trends

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointResult:
    """One checkpoint's row.

    Attributes:
        checkpoint: its label, e.g. `stage 1` or `epoch 0`.
        scores: the caption metrics.
        predictions: what it said, one an image, with the references.
        more: further quantities of the row, e.g. {"object_accuracy": 0.93}.
    """

    checkpoint: str
    scores: CaptionScores
    predictions: Sequence[Prediction]
    more: Mapping[str, float] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """The row of metrics.json."""
        return {"checkpoint": self.checkpoint, **self.scores.corpus, **self.more}


@dataclass(frozen=True)
class WrittenResults:
    """The files written, and the table to print.

    Attributes:
        table: the checkpoints and their scores.
        metrics: path of metrics.json.
        per_image: path of per_image_scores.csv.
        trends: path of metric_trends.png.
        report: path of report.html.
        missing_pictures: cards of the report without a picture.
        example: one of the pictures, None where they are unknown.
    """

    table: Table
    metrics: Path
    per_image: Path
    trends: Path
    report: Path
    missing_pictures: int
    example: Path | None


def write_results(
    out_dir: str | Path,
    protocol: Protocol,
    results: Sequence[CheckpointResult],
    *,
    image_dir: str | Path | None = None,
    title: str = "Evaluation",
    max_cards: int = 200,
    pictures: Pictures = "embed",
) -> WrittenResults:
    """Write every file of an evaluation.

    Args:
        out_dir: their folder, made where it is missing.
        protocol: how the predictions were made and scored.
        results: one a checkpoint, all of the same images, in the order of training.
        image_dir: where the predictions' file names lie; without it the report has no pictures.
        title: heading of the plot and the report.
        max_cards: images in the report at most.
        pictures: `embed` thumbnails into the report, or `link` to the files.

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
    out.mkdir(parents=True, exist_ok=True)
    rows = [result.row() for result in results]
    intervals = {result.checkpoint: bootstrap_intervals(result.scores.per_image) for result in results}
    content = {"protocol": protocol.to_dict(), "rows": rows}
    if any(intervals.values()):
        content |= {"intervals_95": intervals, "intervals_95_note": NOTE}
    write_json(out / "metrics.json", content)
    _write_csv(out / "per_image_scores.csv", results)
    summary = protocol.summary()
    samples = make_samples(results, image_dir)
    trends = plot_trends(out / "metric_trends.png", rows, intervals, title=title, subtitle=summary)
    counts = write_report(
        out / "report.html",
        protocol,
        rows,
        samples,
        title=title,
        trends=trends,
        intervals=intervals,
        max_cards=max_cards,
        pictures=pictures,
    )
    if counts.missing_pictures:
        logger.warning("report: %d of %d pictures could not be read", counts.missing_pictures, counts.cards)
    table = build_table(rows, title=title, caption=summary)
    paths = (out / "metrics.json", out / "per_image_scores.csv", trends, out / "report.html")
    return WrittenResults(table, *paths, counts.missing_pictures, samples[0].image if samples else None)


def make_samples(results: Sequence[CheckpointResult], image_dir: str | Path | None = None) -> list[Sample]:
    """The images of the first checkpoint's predictions with what every checkpoint said of them."""
    said = {result.checkpoint: {item.image_id: item.caption for item in result.predictions} for result in results}
    samples = []
    for item in results[0].predictions:
        key = item.image_id
        samples.append(
            Sample(
                image_id=key,
                references=item.references,
                predictions={label: captions.get(key, "") for label, captions in said.items()},
                scores={result.checkpoint: result.scores.per_image.get(key, {}) for result in results},
                filename=item.filename,
                image=Path(image_dir) / item.filename if image_dir and item.filename else None,
            )
        )
    return samples


def _write_csv(path: Path, results: Sequence[CheckpointResult]) -> None:
    """One line a checkpoint and image, for a spreadsheet or pandas."""
    metrics = list(dict.fromkeys(name for result in results for name in result.scores.corpus))
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["checkpoint", "image_id", "filename", "caption", *metrics])
    for result in results:
        for item in result.predictions:
            values = result.scores.per_image.get(item.image_id, {})
            shown = [f"{values[name]:.6f}" if name in values else "" for name in metrics]
            writer.writerow([result.checkpoint, item.image_id, item.filename, item.caption, *shown])
    write_atomically(path, lambda temporary: temporary.write_bytes(buffer.getvalue().encode("utf-8", errors="replace")))

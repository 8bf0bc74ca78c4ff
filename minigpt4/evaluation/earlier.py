"""Results that a folder already holds: new ones join their table where both can be compared, and replace no others."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt4.common.errors import MetricError, MiniGPT4Error, first_few
from minigpt4.common.files import read_json
from minigpt4.evaluation.labels import predictions_file
from minigpt4.evaluation.predictions import Prediction, load_predictions
from minigpt4.evaluation.protocol import Protocol, references_sha256

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EarlierRow:
    """A row of a table that is there already.

    Attributes:
        checkpoint: label of the checkpoint.
        path: absolute path of the checkpoint.
        file: name of its predictions file.
        values: the row in metrics.json.
        predictions: its predictions.
    """

    checkpoint: str
    path: str
    file: str
    values: Mapping[str, Any]
    predictions: Sequence[Prediction]


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


def choose_folder(folder: Path, protocol: Protocol, checkpoints: Mapping[str, str]) -> ResultsFolder:
    """The folder for new results, created if missing.

    It is the first of `folder`, `folder`-2, `folder`-3 and so on that holds no results, or results of the same
    protocol. A row with the label and the path of a checkpoint to evaluate again is to be replaced.

    Args:
        folder: folder that was asked for.
        protocol: how the new predictions are made and scored.
        checkpoints: label -> absolute path of the checkpoints to evaluate.
    """
    number, reason = 1, None
    base = folder if folder.name.strip(".") else folder.resolve()
    while True:
        candidate = folder if number == 1 else base.with_name(f"{base.name}-{number}")
        try:
            found = read_folder(candidate, protocol, checkpoints)
        except MiniGPT4Error as error:
            number, reason = number + 1, reason or error
            continue
        if reason is not None:
            logger.warning("%s; nothing there is overwritten, and the new results go to %s", reason, candidate)
        if found.rows:
            logger.info("%s: its table keeps the rows %s", candidate, ", ".join(row.checkpoint for row in found.rows))
        candidate.mkdir(parents=True, exist_ok=True)
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
        rows.append(EarlierRow(label, path, name, values, file.predictions))
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

"""The files of an evaluation."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from minigpt4.common.errors import MetricError
from minigpt4.evaluation.results import write_results
from tests.evaluation.conftest import make_protocol, make_results


def test_every_file_is_written(tmp_path: Path, image_folder: Path) -> None:
    written = write_results(tmp_path / "out", make_protocol(), make_results(), image_dir=image_folder, title="A & B")
    content = json.loads(written.metrics.read_text())
    assert [row["checkpoint"] for row in content["rows"]] == ["stage 1", "epoch 0"]
    assert content["rows"][1] == {
        "checkpoint": "epoch 0",
        "Bleu_4": 0.1,
        "CIDEr": pytest.approx(1.25),
        "object_accuracy": 0.6,
    }
    assert content["protocol"]["images"] == 6 and content["protocol"]["split"] == "test"
    low, high = content["intervals_95"]["epoch 0"]["CIDEr"]
    assert low < 1.25 < high
    with written.per_image.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 12
    assert lines[-1] | {"caption": ""} == {
        "checkpoint": "epoch 0",
        "image_id": "5",
        "filename": "5.png",
        "caption": "",
        "Bleu_4": "0.100000",
        "CIDEr": "1.500000",
    }
    comparisons = content["comparisons"]
    assert comparisons["baseline"] == "stage 1" and "BLEU-4 is left out" in comparisons["note"]
    (gain,) = comparisons["differences"]
    assert (gain["checkpoint"], gain["metric"], gain["difference"]) == ("epoch 0", "CIDEr", 1)
    assert gain["interval_95"] == [1, 1] and gain["p"] == gain["p_holm"] < 0.05
    assert "epoch 0: +1.000 (1.000 to 1.000), p 0.0" in str(written.table.caption)
    assert "comparisons" not in json.loads(
        write_results(tmp_path / "one", make_protocol(), make_results(("stage 1",))).metrics.read_text()
    )
    assert written.example == image_folder / "0.png"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "metrics.json",
        "per_image_scores.csv",
        "metric_trends.png",
        "report.html",
    }


def test_results_must_have_different_labels(tmp_path: Path) -> None:
    with pytest.raises(MetricError, match="same label"):
        write_results(tmp_path, make_protocol(), make_results(("a", "a")))
    with pytest.raises(MetricError, match="no checkpoint"):
        write_results(tmp_path, make_protocol(), [])

"""The plot of metrics from checkpoint to checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from minigpt4.evaluation.trends import _spread, plot_trends


@pytest.mark.parametrize("count", [1, 2, 6, 12])
def test_the_plot_shows_every_row(tmp_path: Path, count: int) -> None:
    names = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "METEOR", "CIDEr", "object_accuracy")
    rows: list[dict[str, Any]] = [
        {"checkpoint": f"output/a run with a long name $1/checkpoint_{i}.pth", **dict.fromkeys(names, 0.1 + i / 20)}
        for i in range(count)
    ]
    rows[0]["CIDEr"] = None
    band = {row["checkpoint"]: {"ROUGE_L": (0.05, 0.9)} for row in rows}
    path = tmp_path / "trends.png"
    plot_trends(path, rows, band, title="$ title", subtitle="a subtitle " * 40)
    with Image.open(path) as image:
        assert image.format == "PNG" and 400 < image.width < 2800 and 400 < image.height < 2800
        full = np.asarray(image.convert("RGB"))
    for colour in ((0xD5, 0x5E, 0x00), (0x08, 0x30, 0x6B), (0x6A, 0x3D, 0x9A)):
        drawn = (full == colour).all(axis=2).sum()
        assert drawn > 20 or (count == 1 and colour == (0xD5, 0x5E, 0x00))


def test_labels_are_spread_evenly() -> None:
    assert _spread([0.0, 1.0, 2.0], gap=0.5) == [0.0, 1.0, 2.0]
    assert _spread([1.0, 1.0], gap=0.5) == [0.75, 1.25]
    assert _spread([1.0, 1.1, 1.2, 5.0], gap=0.5) == pytest.approx([0.6, 1.1, 1.6, 5.0])

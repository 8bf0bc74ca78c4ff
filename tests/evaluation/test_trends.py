"""The plot of metrics from checkpoint to checkpoint."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from minigpt4.evaluation.trends import COLOURS, DARK, _spread, panel_svgs, plot_trends, write_svg


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


def test_the_svg_has_every_value_as_text_and_follows_a_dark_setting(tmp_path: Path) -> None:
    rows = [
        {"checkpoint": f"<run> $1 {i}", "CIDEr": 0.5 + i, "CIDEr_shuffled": 0.1, "Bleu_4": i / 10, "ROUGE_L": 0.2}
        for i in range(3)
    ]
    for name in ("one.svg", "two.svg"):
        write_svg(tmp_path / name, panel_svgs(rows, {"<run> $1 1": {"CIDEr": (1, 2)}}), "A & <b>", "s" * 500)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    text = (tmp_path / "one.svg").read_text()
    root = ElementTree.fromstring(text)
    words = [element.text for element in root.iter() if element.text and element.text.strip()]
    for word in ("A & <b>", "BLEU", "ROUGE-L", "CIDEr", "2.500", "0.100", "<run> $1 0", "<run> $1 2"):
        assert word in words
    # Every colour has a value for dark pages, and none is left that has not.
    colours, drawn = text.split("</style>")
    used = set(re.findall(r"var\((--plot-[0-9a-f]{6})\)", drawn))
    assert used and all(colours.count(f"{name}: ") == 2 for name in used)
    assert not re.findall(r"(?:fill|stroke): ?(?:#|rgb|black|white)", drawn)


def test_every_colour_has_one_for_dark_pages() -> None:
    assert set(COLOURS.values()) <= set(DARK)


def test_labels_are_spread_evenly() -> None:
    assert _spread([0.0, 1.0, 2.0], gap=0.5) == [0.0, 1.0, 2.0]
    assert _spread([1.0, 1.0], gap=0.5) == [0.75, 1.25]
    assert _spread([1.0, 1.1, 1.2, 5.0], gap=0.5) == pytest.approx([0.6, 1.1, 1.6, 5.0])

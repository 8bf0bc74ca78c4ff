"""metrics.json, the table, the plot and the report."""

from __future__ import annotations

import csv
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from minigpt4.common.errors import MetricError
from minigpt4.evaluation.caption import CaptionScores
from minigpt4.evaluation.predictions import Prediction
from minigpt4.evaluation.protocol import Protocol
from minigpt4.evaluation.report import Sample, select_samples, write_report
from minigpt4.evaluation.results import CheckpointResult, write_results
from minigpt4.evaluation.statistics import bootstrap_intervals
from minigpt4.evaluation.table import build_table, markdown_table
from minigpt4.evaluation.trends import _apart, plot_trends

IDS = [f"{i}" for i in range(6)]
HOSTILE = '</script><script>alert("x")</script> & <b>bold</b> $title'


class Page(HTMLParser):
    """Counts the tags of a page, and makes sure that they are closed in order."""

    VOID = frozenset(["meta", "img", "input", "br", "link"])

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, kind: str | None = None) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag and kind in (None, attrs.get("class"))]


def make_results(labels: tuple[str, ...] = ("stage 1", "epoch 0")) -> list[CheckpointResult]:
    """Image i scores i / 10 at first and more with every checkpoint."""
    made = []
    for place, label in enumerate(labels):
        per_image = {key: {"Bleu_4": 0.1, "CIDEr": int(key) / 10 + place} for key in IDS}
        corpus = {"Bleu_4": 0.1, "CIDEr": float(np.mean([v["CIDEr"] for v in per_image.values()]))}
        said = [Prediction(k, HOSTILE if k == "3" else f"{label} {k}", f"{k}.png", ("A dog.", HOSTILE)) for k in IDS]
        made.append(
            CheckpointResult(label, CaptionScores(corpus, per_image), said, {"object_accuracy": 0.5 + place / 10})
        )
    return made


def make_protocol() -> Protocol:
    return Protocol.of({key: ["A dog.", HOSTILE] for key in IDS}, ["bleu", "cider"], dataset="scenes", split="test")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "the pictures"
    folder.mkdir()
    for key in IDS[:4]:
        Image.new("RGBA" if key == "0" else "RGB", (500, 200), "red").save(folder / f"{key}.png")
    (folder / "4.png").write_bytes(b"no picture")
    return folder


def test_every_file_is_written(tmp_path: Path, pictures: Path) -> None:
    written = write_results(tmp_path / "out", make_protocol(), make_results(), image_dir=pictures, title="A & B")
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
    assert written.missing_pictures == 2
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "metrics.json",
        "per_image_scores.csv",
        "metric_trends.png",
        "report.html",
    }


def test_results_that_cannot_be_told_apart(tmp_path: Path) -> None:
    with pytest.raises(MetricError, match="same label"):
        write_results(tmp_path, make_protocol(), make_results(("a", "a")))
    with pytest.raises(MetricError, match="no checkpoint"):
        write_results(tmp_path, make_protocol(), [])


def test_the_report_needs_nothing_and_runs_nothing_foreign(tmp_path: Path, pictures: Path) -> None:
    written = write_results(tmp_path, make_protocol(), make_results(), image_dir=pictures, title=HOSTILE)
    text = written.report.read_text()
    page = Page(text)
    assert len(page.all("script")) == 1 and page.all("b") == []
    # Captions stand on the page as they are, as text.
    assert page.text.count(HOSTILE) >= 6 + 2
    sources = [attrs["src"] or "" for attrs in page.all("img")]
    assert all(source.startswith("data:image/") for source in sources)
    assert sum(source.startswith("data:image/jpeg") for source in sources) == 4
    assert page.text.count("no picture") == 2 and "2 of their pictures could not be read" in page.text
    assert "http://" not in text and "https://" not in text and page.all("link") == []
    cards = page.all("article", "card")
    assert [card["data-index"] for card in cards] == ["5", "4", "3", "2", "1", "0"]
    assert cards[0]["data-scores"] == "0.5,1.5"
    assert [option["value"] for option in page.all("option")][:2] == ["0", "1"]
    assert len(page.all("td", "best")) == 2


def test_linked_pictures(tmp_path: Path, pictures: Path) -> None:
    written = write_results(tmp_path / "out", make_protocol(), make_results(), image_dir=pictures, pictures="link")
    page = Page(written.report.read_text())
    sources = [attrs["src"] for attrs in page.all("img")]
    assert "../the%20pictures/0.png" in sources
    assert written.missing_pictures == 1


def test_the_best_and_the_worst_are_shown(tmp_path: Path) -> None:
    samples = [Sample(str(i), ["a"], {"x": "b"}, {"x": {"CIDEr": float(i % 10)}}) for i in range(20)]
    shown = select_samples(samples, "x", "CIDEr", 5)
    assert [index for index, _ in shown] == [9, 19, 8, 0, 10]
    assert [index for index, _ in select_samples(samples, "x", "CIDEr", 1)] == [9]
    assert len(select_samples(samples, "x", "CIDEr", 20)) == 20
    counts = write_report(
        tmp_path / "r.html", make_protocol(), [{"checkpoint": "x", "CIDEr": 4.5}], samples, max_cards=5
    )
    assert (counts.samples, counts.cards) == (20, 5)
    text = Page((tmp_path / "r.html").read_text()).text
    assert "5 of 20 images: the 3 best and the 2 worst of x, by CIDEr" in text


def test_a_report_with_nothing_in_it(tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", make_protocol(), [], [])
    assert "All 0 images" in Page((tmp_path / "r.html").read_text()).text


ROWS: list[dict[str, Any]] = [
    {"checkpoint": "stage|1 [red]", "CIDEr": 0.5, "Bleu_4": 0.2, "object_accuracy_shuffled": 0.1, "mine": 3},
    {"checkpoint": "epoch 0", "CIDEr": 0.7, "Bleu_4": 0.2001, "object_accuracy_shuffled": 0.2},
    {"checkpoint": "epoch 1", "CIDEr": 0.7, "Bleu_4": 0.1, "object_accuracy_shuffled": 0.3, "ROUGE_L": 0.4},
]


def test_markdown_marks_the_best() -> None:
    assert markdown_table(ROWS).splitlines() == [
        "| Checkpoint | BLEU-4 | ROUGE-L | CIDEr | Images shuffled | mine |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| stage\\|1 [red] | **0.200** | – | 0.500 | 10.0 % | 3.000 |",
        "| epoch 0 | **0.200** | – | **0.700** | 20.0 % | – |",
        "| epoch 1 | 0.100 | 0.400 | **0.700** | 30.0 % | – |",
    ]


def test_the_table_on_a_terminal() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(build_table(ROWS, title="A [title]", caption="[caption]"))
    text = console.export_text(clear=False)
    for word in ("A [title]", "[caption]", "stage|1 [red]", "0.700", "20.0 %"):
        assert word in text
    styled = console.export_text(styles=True)
    assert "\x1b[1;32m0.700" in styled and "\x1b[1;32m0.500" not in styled


def test_nothing_to_compare_has_no_best() -> None:
    assert "**" not in markdown_table(ROWS[:1])
    assert "**" not in markdown_table([ROWS[0], {**ROWS[0], "checkpoint": "same"}])


@pytest.mark.parametrize("count", [1, 2, 6, 12])
def test_the_plot_shows_every_row(tmp_path: Path, count: int) -> None:
    names = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "METEOR", "CIDEr", "object_accuracy")
    rows: list[dict[str, Any]] = [
        {"checkpoint": f"output/a run with a long name $1/checkpoint_{i}.pth", **dict.fromkeys(names, 0.1 + i / 20)}
        for i in range(count)
    ]
    rows[0]["CIDEr"] = None
    band = {row["checkpoint"]: {"ROUGE_L": (0.05, 0.9)} for row in rows}
    path = plot_trends(tmp_path / "trends.png", rows, band, title="$ title", subtitle="a subtitle " * 40)
    with Image.open(path) as image:
        assert image.format == "PNG" and 400 < image.width < 2800 and 400 < image.height < 2800
        full = np.asarray(image.convert("RGB"))
    for colour in ((0xD5, 0x5E, 0x00), (0x08, 0x30, 0x6B), (0x6A, 0x3D, 0x9A)):
        drawn = (full == colour).all(axis=2).sum()
        assert drawn > 20 or (count == 1 and colour == (0xD5, 0x5E, 0x00))


def test_labels_are_moved_apart_evenly() -> None:
    assert _apart([0.0, 1.0, 2.0], gap=0.5) == [0.0, 1.0, 2.0]
    assert _apart([1.0, 1.0], gap=0.5) == [0.75, 1.25]
    assert _apart([1.0, 1.1, 1.2, 5.0], gap=0.5) == pytest.approx([0.6, 1.1, 1.6, 5.0])


def test_intervals_cover_the_mean_and_shrink() -> None:
    generator = np.random.default_rng(0)

    def width(count: int) -> float:
        scores = {str(i): {"CIDEr": float(v)} for i, v in enumerate(generator.normal(1, 1, count))}
        low, high = bootstrap_intervals(scores)["CIDEr"]
        assert low < np.mean([v["CIDEr"] for v in scores.values()]) < high
        return high - low

    # 95 % of a normal mean: 2 x 1.96 / sqrt(n).
    assert width(100) == pytest.approx(2 * 1.96 / 10, rel=0.25)
    assert width(1600) == pytest.approx(2 * 1.96 / 40, rel=0.25)
    assert bootstrap_intervals({"1": {"CIDEr": 1.0}}) == {}
    assert bootstrap_intervals({"1": {"Bleu_4": 1.0}, "2": {"Bleu_4": 1.0}}) == {}

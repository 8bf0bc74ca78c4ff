"""The table of checkpoints and metrics."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from minigpt4.evaluation.table import KNOWN, ScoreTable, column

ROWS: list[dict[str, Any]] = [
    {"checkpoint": "stage|1 [red]", "CIDEr": 0.5, "Bleu_4": 0.2, "object_accuracy_shuffled": 0.1, "mine": 3},
    {"checkpoint": "epoch 0", "CIDEr": 0.7, "Bleu_4": 0.2001, "object_accuracy_shuffled": 0.2},
    {"checkpoint": "epoch 1", "CIDEr": 0.7, "Bleu_4": 0.1, "object_accuracy_shuffled": 0.3, "ROUGE_L": 0.4},
]


def printed(rows: list[dict[str, Any]], width: int, **words: str) -> str:
    """What a terminal of that width shows."""
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(ScoreTable(rows, **words))
    return console.export_text(clear=False)


def cells(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Heading -> the column's cells, the best ones between asterisks."""
    console = Console(width=160, file=io.StringIO())
    (table, *_) = ScoreTable(rows).__rich_console__(console, console.options)
    assert isinstance(table, Table)

    def marked(cell: object) -> str:
        assert isinstance(cell, Text)
        return f"*{cell.plain}*" if cell.style else cell.plain

    return {str(found.header): [marked(cell) for cell in found.cells] for found in table.columns}


def test_columns_are_in_order_and_the_best_values_marked() -> None:
    found = cells(ROWS)
    assert list(found) == ["Checkpoint", "BLEU-4", "ROUGE-L", "CIDEr", "Images shuffled", "mine"]
    assert found == {
        "Checkpoint": ["stage|1 [red]", "epoch 0", "epoch 1"],
        "BLEU-4": ["*0.200*", "*0.200*", "0.100"],
        "ROUGE-L": ["–", "–", "0.400"],
        "CIDEr": ["0.500", "*0.700*", "*0.700*"],
        "Images shuffled": ["10.0 %", "20.0 %", "30.0 %"],
        "mine": ["3.000", "–", "–"],
    }


def test_the_control_is_beside_the_metrics_and_never_the_best() -> None:
    rows = [{"checkpoint": name, "CIDEr": value, "CIDEr_shuffled": value / 10} for name, value in (("a", 1), ("b", 2))]
    assert cells(rows) == {
        "Checkpoint": ["a", "b"],
        "CIDEr": ["1.000", "*2.000*"],
        "CIDEr, images shuffled": ["0.100", "0.200"],
    }


def test_nothing_to_compare_has_no_best() -> None:
    assert "*" not in str(cells(ROWS[:1]))
    assert "*" not in str(cells([ROWS[0], {**ROWS[0], "checkpoint": "same"}]))


QUICKSTART = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr", "CIDEr_shuffled", "object_accuracy")
QUICKSTART += ("all_objects_accuracy", "object_accuracy_shuffled")


def test_all_columns_of_the_drawn_scenes_fit_into_100_characters() -> None:
    lines = printed([{"checkpoint": "epoch 4", **dict.fromkeys(QUICKSTART, 1.0)}], 100).splitlines()
    assert any(line.split() == ["epoch", "4", *["1.000"] * 7, *["100.0", "%"] * 3] for line in lines)
    assert any(line.count("shuffled") == 2 for line in lines)


def test_80_columns_show_all_but_the_lesser_bleus() -> None:
    rows = [{"checkpoint": f"epoch {n}", **dict.fromkeys(QUICKSTART, 1.0)} for n in range(2)]
    shown = printed(rows, 80, caption="the caption")
    assert max(map(len, shown.splitlines())) <= 80
    (line,) = [line for line in shown.splitlines() if line.startswith(" epoch 1")]
    assert line.split() == ["epoch", "1", *["1.000"] * 4, *["100.0", "%"] * 3]
    missing, caption = [line.strip() for line in shown.splitlines() if line.strip()][-2:]
    assert missing.startswith("BLEU-1, BLEU-2, BLEU-3: no room here") and caption == "the caption"


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
def test_no_width_cuts_a_value(width: int) -> None:
    """Every column of captions has values of its own, which are all looked for."""
    shown_together = [item for item in KNOWN[: KNOWN.index(column("fragments")) + 1] if "CHAIR" not in item.key]
    known = [item for item in shown_together if "_shuffled" not in item.key or item.key in QUICKSTART]
    keys = [item.key for item in known] + ["a_measure_of_my_own"]
    rows = [
        {"checkpoint": "a/long/path/of/a/checkpoint.pth" if n else "stage 1"}
        | {key: (100 * n + place) / 1000 for place, key in enumerate(keys, 1)}
        for n in range(2)
    ]
    shown = printed(rows, width)
    assert "…" not in shown and max(map(len, shown.splitlines())) <= width
    for item in [*known, column("a_measure_of_my_own")]:
        dropped = item.key in ("Bleu_1", "Bleu_2", "Bleu_3") and width < 160
        for row in rows:
            assert (item.format(row[item.key]) in shown) != dropped, item.label
        assert dropped or all(word in shown for word in item.label.split())


def test_piped_output_has_no_control_characters() -> None:
    file = io.StringIO()
    Console(file=file, width=160).print(ScoreTable(ROWS, "title", "caption"))
    assert not [character for character in file.getvalue() if ord(character) < 32 and character != "\n"]


def test_the_table_on_a_terminal() -> None:
    shown = printed(ROWS, 100, title="A [title]", caption="[caption]")
    for word in ("A [title]", "[caption]", "stage|1 [red]", "0.700", "20.0 %"):
        assert word in shown
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(ScoreTable(ROWS))
    styled = console.export_text(styles=True)
    assert "\x1b[1;32m0.700" in styled and "\x1b[1;32m0.500" not in styled


def test_what_was_not_measured_is_not_the_best() -> None:
    rows = [{"checkpoint": str(value), "CIDEr": value} for value in (float("nan"), 0.5, 0.7, float("inf"))]
    assert cells(rows)["CIDEr"] == ["–", "0.500", "*0.700*", "–"]

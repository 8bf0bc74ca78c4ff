"""The table of checkpoints and metrics."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console
from rich.text import Text

from minigpt4.evaluation.table import build_table

ROWS: list[dict[str, Any]] = [
    {"checkpoint": "stage|1 [red]", "CIDEr": 0.5, "Bleu_4": 0.2, "object_accuracy_shuffled": 0.1, "mine": 3},
    {"checkpoint": "epoch 0", "CIDEr": 0.7, "Bleu_4": 0.2001, "object_accuracy_shuffled": 0.2},
    {"checkpoint": "epoch 1", "CIDEr": 0.7, "Bleu_4": 0.1, "object_accuracy_shuffled": 0.3, "ROUGE_L": 0.4},
]


def cells(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Heading -> the column's cells, the best ones between asterisks."""

    def marked(cell: object) -> str:
        assert isinstance(cell, Text)
        return f"*{cell.plain}*" if cell.style else cell.plain

    return {str(column.header): [marked(cell) for cell in column.cells] for column in build_table(rows).columns}


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


def test_all_columns_of_the_drawn_scenes_fit_into_100_characters() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    shown = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr", "CIDEr_shuffled", "object_accuracy")
    shown += ("all_objects_accuracy", "object_accuracy_shuffled")
    console.print(build_table([{"checkpoint": "epoch 4", **dict.fromkeys(shown, 1.0)}]))
    lines = console.export_text().splitlines()
    assert any(line.split() == ["epoch", "4", *["1.000"] * 7, *["100.0", "%"] * 3] for line in lines)
    assert any(line.count("shuffled") == 2 for line in lines)


def test_the_table_on_a_terminal() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(build_table(ROWS, title="A [title]", caption="[caption]"))
    text = console.export_text(clear=False)
    for word in ("A [title]", "[caption]", "stage|1 [red]", "0.700", "20.0 %"):
        assert word in text
    styled = console.export_text(styles=True)
    assert "\x1b[1;32m0.700" in styled and "\x1b[1;32m0.500" not in styled

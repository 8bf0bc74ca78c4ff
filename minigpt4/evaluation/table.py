"""The table of checkpoints and metrics: its columns, their names, and which value is best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

Row = Mapping[str, Any]
"""{"checkpoint": label, metric: value, ...}, as in metrics.json."""


@dataclass(frozen=True)
class Column:
    """One measured quantity.

    Attributes:
        key: key in a row of metrics.json.
        label: name shown to people.
        percent: the value is a share, shown in per cent.
        compared: larger is better, so the best value is marked. False for controls, where a mark would mislead.
    """

    key: str
    label: str
    percent: bool = False
    compared: bool = True

    def format(self, value: Any) -> str:
        """The value as text, a dash where there is none."""
        if not isinstance(value, (int, float)) or value != value:
            return "–"
        return f"{100 * value:.1f} %" if self.percent else f"{value:.3f}"


KNOWN = (
    Column("Bleu_1", "BLEU-1"),
    Column("Bleu_2", "BLEU-2"),
    Column("Bleu_3", "BLEU-3"),
    Column("Bleu_4", "BLEU-4"),
    Column("METEOR", "METEOR"),
    Column("ROUGE_L", "ROUGE-L"),
    Column("CIDEr", "CIDEr"),
    Column("SPICE", "SPICE"),
    Column("CIDEr_shuffled", "CIDEr, images shuffled", compared=False),
    Column("object_accuracy", "Largest object", percent=True),
    Column("all_objects_accuracy", "All objects", percent=True),
    Column("object_accuracy_shuffled", "Images shuffled", percent=True, compared=False),
    Column("repetition", "Repetition", percent=True, compared=False),
    Column("fragments", "Fragments", percent=True, compared=False),
)
"""Columns in the order of the table."""
SHOWN = ("CIDEr", "METEOR", "ROUGE_L", "Bleu_4", "SPICE")
"""Metrics for where there is room for few: beside a caption, below a table; the first that was measured comes first."""
_BY_KEY = {column.key: column for column in KNOWN}


def column(key: str) -> Column:
    """The column of a key; an unknown key gets one labelled by the key itself."""
    return _BY_KEY.get(key) or Column(key, key.replace("_", " "), compared=False)


def columns_of(rows: Iterable[Row]) -> list[Column]:
    """The columns present in any row: the known ones in their order, then the others in order of appearance."""
    keys = list(dict.fromkeys(key for row in rows for key in row if key != "checkpoint"))
    known = [item for item in KNOWN if item.key in keys]
    return known + [column(key) for key in keys if key not in _BY_KEY]


def best_rows(rows: Sequence[Row], item: Column) -> set[int]:
    """Indices of the rows with the best value of a column; empty where there is nothing to compare.

    Values that look the same in the table are equally good; where all do, none is the best.
    """
    values = {i: row[item.key] for i, row in enumerate(rows) if isinstance(row.get(item.key), (int, float))}
    if not item.compared or len(values) < 2:
        return set()
    top = item.format(max(values.values()))
    best = {i for i, value in values.items() if item.format(value) == top}
    return best if len(best) < len(values) else set()


def build_table(rows: Sequence[Row], title: str | None = None, caption: str | None = None) -> Table:
    """The rows as a rich table, the best value of every column in bold green.

    Args:
        rows: one row per checkpoint.
        title: text above the table.
        caption: text below the table.
    """
    columns = columns_of(rows)
    table = Table(
        title=Text(title) if title else None,
        caption=Text(caption) if caption else None,
        box=box.SIMPLE_HEAD,
        caption_justify="left",
        title_justify="left",
        # The ten columns of the drawn scenes fit into 100 characters.
        padding=(0, 1 if len(columns) < 10 else 0),
    )
    table.add_column("Checkpoint", overflow="fold", min_width=10)
    for item in columns:
        table.add_column(item.label, justify="right", no_wrap=item.compared and not item.percent)
    best = {item.key: best_rows(rows, item) for item in columns}
    for index, row in enumerate(rows):
        cells = [Text(str(row.get("checkpoint", "")))]
        for item in columns:
            style = "bold green" if index in best[item.key] else ""
            cells.append(Text(item.format(row.get(item.key)), style=style))
        table.add_row(*cells)
    return table

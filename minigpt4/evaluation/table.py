"""The table of checkpoints and metrics: for the terminal, and in Markdown for a README or a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from minigpt4.evaluation.columns import best_rows, columns_of

Row = Mapping[str, Any]
"""{"checkpoint": label, metric: value, ...}"""


def build_table(rows: Sequence[Row], title: str | None = None, caption: str | None = None) -> Table:
    """The rows as a rich table, the best value of every column in bold green.

    Args:
        rows: one a checkpoint.
        title: printed above the table.
        caption: printed below it.
    """
    columns = columns_of(rows)
    table = Table(
        title=Text(title) if title else None,
        caption=Text(caption) if caption else None,
        box=box.SIMPLE_HEAD,
        caption_justify="left",
        title_justify="left",
    )
    table.add_column("Checkpoint", overflow="fold", min_width=10)
    for item in columns:
        table.add_column(item.label, justify="right", no_wrap=not item.percent)
    best = {item.key: best_rows(list(rows), item) for item in columns}
    for index, row in enumerate(rows):
        cells = [Text(str(row.get("checkpoint", "")))]
        for item in columns:
            style = "bold green" if index in best[item.key] else ""
            cells.append(Text(item.show(row.get(item.key)), style=style))
        table.add_row(*cells)
    return table


def markdown_table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, the best value of every column in bold."""
    columns = columns_of(rows)
    best = {item.key: best_rows(list(rows), item) for item in columns}
    lines = [["Checkpoint", *(item.label for item in columns)]]
    for index, row in enumerate(rows):
        shown = [(item.show(row.get(item.key)), index in best[item.key]) for item in columns]
        label = str(row.get("checkpoint", "")).replace("|", "\\|")
        lines.append([label, *(f"**{value}**" if top else value for value, top in shown)])
    lines.insert(1, ["---", *("---:" for _ in columns)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"

"""One table and one JSON file for every benchmark."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from minigpt4.common.files import write_json
from minigpt4.common.matmul import use_onednn_if_exact

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Row = dict[str, float | str]
Rows = dict[str, Row]


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that every benchmark takes."""
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds; the figures are medians")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")


def peer_dtype(name: str, device: torch.device) -> str:
    """The peer computes in our number format; on a CPU, whose bfloat16 it cannot use well, in float32."""
    return name if device.type == "cuda" else "float32"


def prepare_device(name: str) -> torch.device:
    """The device, set up as the project's programs set it up."""
    device = torch.device(name)
    if device.type == "cpu":
        use_onednn_if_exact()
    return device


def report(title: str, rows: Rows, facts: dict[str, Any], out: Path | None) -> None:
    """Print the rows as a table, with the facts below it, and write both.

    Args:
        title: what was measured.
        rows: name -> figure by column, all with the same columns.
        facts: machine, sizes and whatever else belongs to the figures.
        out: JSON file; None: print only.
    """
    console = Console(width=130)
    columns = list(next(iter(rows.values())))
    table = Table("", *columns, title=title)
    for name, figures in rows.items():
        table.add_row(name, *(_shown(figures[column]) for column in columns))
    console.print(table)
    for name, fact in facts.items():
        console.print(f"{name}: {fact}", highlight=False)
    if out:
        write_json(out, {"work": title, **facts, "rows": rows})


def _shown(figure: float | str) -> str:
    if isinstance(figure, str):
        return figure
    return f"{figure:.1e}" if 0 < abs(figure) < 1e-3 else f"{figure:.3g}" if figure < 100 else f"{figure:,.0f}"

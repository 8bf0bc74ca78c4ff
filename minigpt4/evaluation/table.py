"""The table of checkpoints and metrics: its columns, their names, and which value is best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
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
        compared: one value is better than another, so the best is marked. False for controls, where a mark would
            mislead.
        averaged: the corpus score is the mean of the scores of its images or questions.
        smaller: smaller is better.
    """

    key: str
    label: str
    percent: bool = False
    compared: bool = True
    averaged: bool = False
    smaller: bool = False

    def format(self, value: Any) -> str:
        """The value as text, a dash where there is none."""
        if not is_number(value):
            return "–"
        return f"{100 * value:.1f} %" if self.percent else f"{value:.3f}"


KNOWN = (
    Column("Bleu_1", "BLEU-1"),
    Column("Bleu_2", "BLEU-2"),
    Column("Bleu_3", "BLEU-3"),
    Column("Bleu_4", "BLEU-4"),
    Column("METEOR", "METEOR"),
    Column("ROUGE_L", "ROUGE-L", averaged=True),
    Column("CIDEr", "CIDEr", averaged=True),
    Column("SPICE", "SPICE", averaged=True),
    Column("Bleu_4_shuffled", "BLEU-4, images shuffled", compared=False),
    Column("METEOR_shuffled", "METEOR, images shuffled", compared=False),
    Column("ROUGE_L_shuffled", "ROUGE-L, images shuffled", compared=False),
    Column("SPICE_shuffled", "SPICE, images shuffled", compared=False),
    Column("CIDEr_shuffled", "CIDEr, images shuffled", compared=False),
    Column("object_accuracy", "Largest object", percent=True),
    Column("all_objects_accuracy", "All objects", percent=True),
    Column("object_accuracy_shuffled", "Images shuffled", percent=True, compared=False),
    Column("repetition", "Repetition", percent=True, compared=False),
    Column("fragments", "Fragments", percent=True, compared=False),
    Column("CHAIR_i", "CHAIRi", percent=True, smaller=True),
    Column("CHAIR_i_shuffled", "CHAIRi, images shuffled", percent=True, compared=False),
    Column("CHAIR_s", "CHAIRs", percent=True, smaller=True),
    Column("CHAIR_s_shuffled", "CHAIRs, images shuffled", percent=True, compared=False),
    Column("object_recall", "Objects named", percent=True),
    Column("object_recall_shuffled", "Objects named, images shuffled", percent=True, compared=False),
    Column("accuracy", "Accuracy", percent=True, averaged=True),
    Column("accuracy_shuffled", "Accuracy, images shuffled", percent=True, compared=False),
    Column("AUROC", "AUROC", percent=True),
    Column("precision", "Precision", percent=True),
    Column("recall", "Recall", percent=True),
    Column("F1", "F1", percent=True),
    Column("F1_shuffled", "F1, images shuffled", percent=True, compared=False),
    Column("yes", "Says yes", percent=True, compared=False),
    Column("IoU_50", "IoU ≥ 0.5", percent=True, averaged=True),
    Column("IoU_50_shuffled", "IoU ≥ 0.5, images shuffled", percent=True, compared=False),
    Column("mean_IoU", "Mean IoU", averaged=True),
    Column("AP", "AP", percent=True),
    Column("AP50", "AP50", percent=True),
    Column("AP50_shuffled", "AP50, images shuffled", percent=True, compared=False),
    Column("box_F1", "F1 of boxes", percent=True, averaged=True),
    Column("unreadable", "Unreadable", percent=True, compared=False),
)
"""Columns in the order of the table."""
SHOWN = ("CIDEr", "METEOR", "ROUGE_L", "Bleu_4", "SPICE", "accuracy", "F1", "IoU_50", "mean_IoU", "AP50", "box_F1")
"""Metrics for where there is room for few: beside a caption, below a table; the first that was measured comes first."""
HEADLINES = ("accuracy", "F1", "IoU_50", "AP50")
"""Metrics of questions that are also measured with shuffled images, and for each kind of question."""
DISPENSABLE = ("Bleu_1", "Bleu_2", "Bleu_3")
"""Left out first where a line is too short; BLEU-4 is the one that papers report."""
_LABEL_WIDTH = 10
"""Characters of a checkpoint's name before it is continued on the next line."""
_BY_KEY = {column.key: column for column in KNOWN}


def is_number(value: Any) -> bool:
    """Whether a value of a row was measured; NaN, infinities and None were not."""
    return isinstance(value, (int, float)) and math.isfinite(value)


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
    values = {i: row[item.key] for i, row in enumerate(rows) if is_number(row.get(item.key))}
    if not item.compared or len(values) < 2:
        return set()
    top = item.format((min if item.smaller else max)(values.values()))
    best = {i for i, value in values.items() if item.format(value) == top}
    return best if len(best) < len(values) else set()


def kind_table(metric: str, kinds: Mapping[str, Mapping[str, Mapping[str, float]]]) -> ScoreTable | None:
    """One metric by kind of question: a row for each checkpoint, and one for its answers with shuffled images.

    Args:
        metric: key of the metric.
        kinds: checkpoint -> kind -> {"questions": their number, metric: score, ...}.

    Returns:
        None where no kind was measured.
    """
    measured = column(metric)
    names = list(dict.fromkeys(kind for found in kinds.values() for kind, row in found.items() if metric in row))
    rows: list[dict[str, Any]] = []
    for label, found in kinds.items():
        for suffix, words in (("", ""), ("_shuffled", ", images shuffled")):
            row = {kind: values[metric + suffix] for kind, values in found.items() if metric + suffix in values}
            if row:
                rows.append({"checkpoint": label + words, **row})
    counts = {kind: round(row["questions"]) for found in kinds.values() for kind, row in found.items()}
    columns = [
        Column(name, f"{name} ({counts[name]:,})", percent=measured.percent, compared=measured.compared)
        for name in names
    ]
    title = f"{measured.label} by kind of question (number of questions)"
    return ScoreTable(rows, title, columns=columns) if names else None


@dataclass(frozen=True)
class ScoreTable:
    """The rows as a table that no width cuts: printed by rich, the best value of every column in bold green.

    Where the columns are too many for a line, BLEU-1 to BLEU-3 are left out first, and then the rest is shown in
    several tables below each other.

    Attributes:
        rows: one row per checkpoint.
        title: text above the table.
        caption: text below the table.
        columns: the columns; None: those that are in any row.
    """

    rows: Sequence[Row]
    title: str = ""
    caption: str = ""
    columns: Sequence[Column] | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table | Text]:
        parts = self.parts(options.max_width)
        for number, columns in enumerate(parts):
            table = self._table(columns, options.max_width)
            if number == 0 and self.title:
                table.title = Text(self.title)
            yield table
        hidden = [item.label for item in self._columns() if not any(item in part for part in parts)]
        missing = f"{', '.join(hidden)}: no room here; see the file of the scores" if hidden else ""
        if lines := [line for line in (missing, self.caption) if line]:
            yield Text("\n".join(lines), style="dim italic")

    def parts(self, width: int) -> list[list[Column]]:
        """The columns of each table that is shown.

        Args:
            width: characters of a line.
        """
        columns = self._columns()
        if self._width(columns) > width:
            columns = [item for item in columns if item.key not in DISPENSABLE]
        parts: list[list[Column]] = [[]]
        for item in columns:
            if parts[-1] and self._width([*parts[-1], item]) > width:
                parts.append([])
            parts[-1].append(item)
        return parts

    def _columns(self) -> list[Column]:
        return columns_of(self.rows) if self.columns is None else list(self.columns)

    def _width(self, columns: Sequence[Column]) -> int:
        """Characters that a table of these columns takes at least."""
        return _table_width([_LABEL_WIDTH, *map(self._cell_width, columns)])

    def _cell_width(self, item: Column) -> int:
        """Characters of a column's longest value, or of the longest word of its name."""
        values = (item.format(row.get(item.key)) for row in self.rows)
        return max(map(cell_len, [*values, *item.label.split()]))

    def _table(self, columns: Sequence[Column], width: int) -> Table:
        """A table of some columns in at most `width` characters; rich itself would cut values."""
        widths = [self._cell_width(item) for item in columns]
        full = [max(found, cell_len(item.label)) for found, item in zip(widths, columns, strict=True)]
        if _table_width([_LABEL_WIDTH, *full], 1) <= width:
            widths = full
        padding = int(_table_width([_LABEL_WIDTH, *widths], 1) <= width)
        left = width - _table_width([0, *widths], padding)
        labels = [str(row.get("checkpoint", "")) for row in self.rows]
        table = Table(box=box.SIMPLE_HEAD, title_justify="left", padding=(0, padding, 0, 0))
        longest = max(map(cell_len, labels), default=0)
        table.add_column("Checkpoint", overflow="fold", width=max(_LABEL_WIDTH, min(left, longest)))
        best = {item.key: best_rows(self.rows, item) for item in columns}
        for item, found in zip(columns, widths, strict=True):
            table.add_column(item.label, justify="right", width=found)
        for index, (label, row) in enumerate(zip(labels, self.rows, strict=True)):
            cells = [Text(label)]
            for item in columns:
                style = "bold green" if index in best[item.key] else ""
                cells.append(Text(item.format(row.get(item.key)), style=style))
            table.add_row(*cells)
        return table


def _table_width(widths: Sequence[int], padding: int = 0) -> int:
    """Characters of a table whose columns have these widths: two edges, and a space between columns."""
    return 1 + sum(width + padding + 1 for width in widths)


def overview(tables: Mapping[str, Sequence[Row]]) -> ScoreTable:
    """The most important score of each checkpoint in several tables, side by side.

    Args:
        tables: title -> rows; their checkpoints are the same.
    """
    rows: dict[str, dict[str, Any]] = {}
    columns = []
    for title, listed in tables.items():
        shown = next((name for name in SHOWN if any(name in row for row in listed)), None)
        if shown is None:
            continue
        measured = column(shown)
        columns.append(Column(title, f"{title}: {measured.label}", percent=measured.percent, compared=True))
        for row in listed:
            label = str(row["checkpoint"])
            rows.setdefault(label, {"checkpoint": label})[title] = row.get(shown)
    return ScoreTable(list(rows.values()), "All splits", columns=columns)

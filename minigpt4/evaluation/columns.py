"""The columns of a result: their order, their names for people, and which way is better."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Column:
    """One measured quantity.

    Attributes:
        key: its key in a row of metrics.json.
        label: its name for people.
        percent: a share, shown in per cent.
        compared: larger is better, so that the best may be marked. Not so for a control, where it would mislead.
    """

    key: str
    label: str
    percent: bool = False
    compared: bool = True

    def show(self, value: Any) -> str:
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
    Column("object_accuracy", "Largest object", percent=True),
    Column("all_objects_accuracy", "All objects", percent=True),
    Column("object_accuracy_shuffled", "Images shuffled", percent=True, compared=False),
    Column("repetition", "Repetition", percent=True, compared=False),
    Column("fragments", "Fragments", percent=True, compared=False),
)
_BY_KEY = {column.key: column for column in KNOWN}


def column(key: str) -> Column:
    """The column of a key, made up from the key where it is not a known one."""
    return _BY_KEY.get(key) or Column(key, key.replace("_", " "), compared=False)


def columns_of(rows: Iterable[Mapping[str, Any]]) -> list[Column]:
    """The columns that any row has: the known ones in their order, then the others as they come."""
    keys = list(dict.fromkeys(key for row in rows for key in row if key != "checkpoint"))
    known = [item for item in KNOWN if item.key in keys]
    return known + [column(key) for key in keys if key not in _BY_KEY]


def best_rows(rows: list[Mapping[str, Any]], item: Column) -> set[int]:
    """Indices of the rows with the best value of a column; none where there is nothing to compare.

    Values that look alike in the table are equally good; where all do, none is the best.
    """
    values = {i: row[item.key] for i, row in enumerate(rows) if isinstance(row.get(item.key), (int, float))}
    if not item.compared or len(values) < 2:
        return set()
    top = item.show(max(values.values()))
    best = {i for i, value in values.items() if item.show(value) == top}
    return best if len(best) < len(values) else set()

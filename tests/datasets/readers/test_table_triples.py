from __future__ import annotations

from pathlib import Path

import pytest

from minigpt4.common.types import Record
from minigpt4.datasets.readers.rows import RowProblem
from minigpt4.datasets.readers.table_triples import triples_text
from minigpt4.evaluation.structured import parse_triples
from tests.datasets.readers.conftest import read, save_table


def test_tables_become_triples(tmp_path: Path) -> None:
    save_table(tmp_path, "train/a", 'name,age,"height, m"\nAnn,31,\n\n"Bob ""B""",7,1.2\n')
    (record,) = read("table_triples", tmp_path)
    assert isinstance(record, Record)
    assert (record.image_id, record.image, record.split) == ("train/a", "train/a.png", "train")
    triples = (("Ann", "age", "31"), ('Bob "B"', "age", "7"), ('Bob "B"', "height, m", "1.2"))
    assert parse_triples(record.answers[0]).items == triples


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no table; write it into a.csv"),
        ("", "no value"),
        ("name,age\n", "no value"),
        ("name,age\nAnn\n", "row 2 has 1 cells, the header 2"),
        ("name,age\n,31\n", "row 2 has no name"),
        ('name,age\n"Ann,31\n', "broken CSV"),
    ],
)
def test_bad_tables_are_named(text: str | None, message: str, tmp_path: Path) -> None:
    save_table(tmp_path, "a", text)
    (problem,) = read("table_triples", tmp_path)
    assert isinstance(problem, RowProblem) and message in str(problem) and "a.csv" in str(problem)


def test_triples_of_a_table_in_memory() -> None:
    assert triples_text([["", "x"], ["r", " 1  2 "]]) == '[["r", "x", "1 2"]]'

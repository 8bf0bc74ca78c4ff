"""BLIP's caption lists -> the downloader's table."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from dataset import convert_captions
from dataset.convert_captions import ArrayReader, convert, main
from minigpt4.common import json_array

ROWS = [{"caption": f"caption {n} été \U0001f600", "url": f"https://a.org/{n}.jpg?x=[1,{{2}}]"} for n in range(200)]


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


@pytest.mark.parametrize("chunk", [1, 2, 7, 100, 1 << 20])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_values_are_the_same_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch, chunk: int, ascii_only: bool) -> None:
    monkeypatch.setattr(json_array, "CHUNK", chunk)
    values = [*ROWS[:20], 12, -3.5e2, 'a"]', [1, [2, {}]], None, True, 345]
    for indent in (None, 1):
        content = json.dumps(values, ensure_ascii=ascii_only, indent=indent).encode()
        sizes: list[int] = []
        assert list(ArrayReader(io.BytesIO(content), "x", sizes.append)) == values
        assert sum(sizes) == len(content)
    assert list(ArrayReader(io.BytesIO(b" [ \n ] "), "x")) == []


@pytest.mark.parametrize("suffix", [".tsv", ".csv"])
def test_a_table_of_caption_and_url(tmp_path: Path, suffix: str) -> None:
    source = write(tmp_path / "ccs.json", ROWS)
    counts = convert(source, tmp_path / f"out{suffix}")
    assert counts.rows == 200 and table(tmp_path / f"out{suffix}") == ROWS


def test_each_row_is_one_line(tmp_path: Path) -> None:
    row = {"caption": 'one\ttwo\r\nthree "four", five\u2028six', "url": " https://a.org/\n1.jpg "}
    convert(write(tmp_path / "a.json", [row]), tmp_path / "a.tsv")
    assert (tmp_path / "a.tsv").read_bytes().count(b"\n") == 2
    assert table(tmp_path / "a.tsv") == [
        {"caption": 'one two three "four", five six', "url": "https://a.org/ 1.jpg"},
    ]


def test_rows_that_cannot_be_used_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad: list[Any] = [{"caption": "x"}, {"url": "u"}, {"caption": " ", "url": "u"}, {"caption": "x", "url": 3}, 5, []]
    source = write(tmp_path / "ccs.json", [*ROWS[:5], *bad])
    assert main([str(source)]) == 0
    assert (
        "ccs.tsv: 5 rows; left out: 2 without url, 2 without caption, 2 that are not objects" in capsys.readouterr().out
    )
    assert len(table(tmp_path / "ccs.tsv")) == 5


def test_a_limit_stops_reading(tmp_path: Path) -> None:
    source = write(tmp_path / "ccs.json", json.dumps(ROWS)[:-3000])  # what follows is not read
    assert main([str(source), "--limit", "7", "--out", str(tmp_path / "few.csv")]) == 0
    assert table(tmp_path / "few.csv") == ROWS[:7]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"annotations": []}', 'a JSON array of objects, .* is expected, found \'{"annotations"'),
        ("", "is expected, found ''"),
        ('[{"caption": "x" "url": "yyyyyy"}]', r"broken JSON at byte 1 \(Expecting ',' delimiter\)"),
        ('[{"caption": "x"} {"url": "y"}]', r"broken JSON at byte 18 \(',' or '\]' is expected\)"),
        ('[{"caption": "été"}, {"url": "y"}', r"truncated at byte 35"),
        ('[{"caption": "x"}, {"url": "y', r"truncated at byte 19"),
        ("[1,", r"truncated at byte 3"),
        ("[1, " + "[" * 200_000, r"broken JSON at byte 4 \(maximum recursion"),
        ("[1, " + "9" * 5000 + "]", r"broken JSON at byte 4 \(Exceeds the limit"),
    ],
)
def test_what_is_no_array_is_named(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(convert_captions.DataError, match=message):
        convert(write(tmp_path / "a.json", content), tmp_path / "a.tsv")
    assert not (tmp_path / "a.tsv").exists()


def test_rows_before_the_damage_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = json.dumps(ROWS, ensure_ascii=False)
    source = write(tmp_path / "ccs.json", text[: text.index("caption 150")])
    with pytest.raises(SystemExit):
        main([str(source)])
    error = capsys.readouterr().err
    byte = len(text[: text.index('{"caption": "caption 150')].encode())
    assert f"ccs.json: truncated at byte {byte:,}" in error
    assert "ccs.partial.tsv keeps the rows before that: 150 rows" in error
    assert table(tmp_path / "ccs.partial.tsv") == ROWS[:150]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ccs.json", "ccs.partial.tsv"]


def test_broken_characters_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'[{"caption": "\xff", "url": "u"}]')
    with pytest.raises(convert_captions.DataError, match="not UTF-8"):
        convert(tmp_path / "a.json", tmp_path / "a.tsv")


def test_what_utf8_cannot_encode_is_replaced(tmp_path: Path) -> None:
    source = write(tmp_path / "a.json", '[{"caption": "\\ud800 a", "url": "u"}]')
    convert(source, tmp_path / "a.tsv")
    assert (tmp_path / "a.tsv").read_text(encoding="utf-8") == "caption\turl\n\ufffd a\tu\n"


def test_files_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path / "no.json")])
    with pytest.raises(SystemExit):
        main([str(write(tmp_path / "a.json", ROWS)), "--out", str(tmp_path / "a.xlsx")])
    first, second = capsys.readouterr().err.splitlines()
    assert "no.json: No such file" in first and "a.xlsx: a name that ends in .tsv or .csv" in second

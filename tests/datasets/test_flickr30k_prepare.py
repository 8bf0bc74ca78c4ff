from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from minigpt4.common.errors import DataError
from minigpt4.common.files import PROJECT
from minigpt4.common.registry import readers
from minigpt4.common.types import Record
from minigpt4.datasets.flickr30k_prepare import main, prepare

HEADER = ["raw", "sentids", "split", "filename", "img_id"]
CAPTIONS = ['A "quoted" man &amp; a dog.', "No full stop", "In the U.S. at 5 p.m.", "Café, très bien!", "Two  spaces."]


def row_of(number: int, **changes: str) -> dict[str, str]:
    ids = [5 * number + place for place in range(5)]
    row = {
        "raw": json.dumps(CAPTIONS), "sentids": json.dumps(ids), "split": ("train", "train", "val", "test")[number % 4],
        "filename": f"{number}.jpg", "img_id": str(number),
    }  # fmt: skip
    return row | changes


def write_csv(path: Path, rows: list[dict[str, str]], header: list[str] | None = None) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header or HEADER, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "a.csv", [row_of(number) for number in range(8)])


def load(path: Path) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return records


def test_a_record_keeps_everything_as_it_stands(annotations: Path, tmp_path: Path) -> None:
    summary = prepare(annotations, None, tmp_path / "out" / "a.json")
    assert load(tmp_path / "out" / "a.json")[3] == {
        "image_id": "3",
        "grounded_caption": " ".join(CAPTIONS),
        "captions": CAPTIONS,
        "filename": "3.jpg",
        "split": "test",
        "sentids": [15, 16, 17, 18, 19],
    }
    assert summary.counts == {"train": 4, "val": 2, "test": 2}
    assert (summary.missing, summary.captions) == ([], (5, 5))


def test_the_reader_reads_what_is_written(annotations: Path, tmp_path: Path) -> None:
    prepare(annotations, None, tmp_path / "a.json")
    records = list(readers.get("flickr30k")().read(tmp_path / "a.json"))
    assert all(isinstance(record, Record) and record.answers == tuple(CAPTIONS) for record in records)
    assert Counter(record.split for record in records) == {"train": 4, "val": 2, "test": 2}


def test_records_without_an_image_are_left_out_and_counted(
    annotations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = tmp_path / "images", tmp_path / "a.json"
    images.mkdir()
    Image.new("RGB", (4, 4)).save(images / "6.jpg")
    main(["--annotations", str(annotations), "--images", str(images), "--out", str(out)])
    assert [record["filename"] for record in load(out)] == ["6.jpg"]
    printed = capsys.readouterr().out
    assert "1 image (train 0, val 1, test 0), 5 captions each" in printed
    assert "7 images (0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg and 2 more)" in printed
    assert f"datasets.flickr30k.images={images}" in printed and "train.py" not in printed


def test_defaults_come_from_the_data_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "flickr30k"
    (folder / "flickr30k-images").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(folder / "flickr30k-images" / "0.jpg")
    write_csv(folder / "flickr_annotations_30k.csv", [row_of(0), row_of(1)])
    monkeypatch.setenv("MINIGPT4_DATA", str(tmp_path))
    main([])
    assert len(load(folder / "flickr30k.json")) == 1
    assert f"datasets.flickr30k.images={folder / 'flickr30k-images'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"raw": '["a", "b"'}, "broken JSON in 'raw' (Expecting ',' delimiter at character 9); a list of texts"),
        ({"raw": ""}, "broken JSON in 'raw'"),
        ({"raw": "[" * 5000}, "broken JSON in 'raw'"),
        ({"raw": "[" + "9" * 5000 + "]"}, "broken JSON in 'raw'"),
        ({"raw": '["a", 3]'}, "'raw' should be a list of texts"),
        ({"raw": '"a"'}, "'raw' should be a list of texts"),
        ({"raw": "[]"}, "at least one caption"),
        ({"raw": '["a", " "]'}, "no empty one"),
        ({"sentids": "[1, 2"}, "broken JSON in 'sentids'"),
        ({"sentids": '["1"]'}, "'sentids' should be a list of integers"),
        ({"sentids": "[true]"}, "'sentids' should be a list of integers"),
        ({"split": "restval"}, "unknown split 'restval'; known: train, val, test"),
        ({"split": ""}, "unknown split ''"),
        ({"filename": ""}, "'filename' is empty"),
        ({"filename": "1.jpg"}, "'1.jpg' is already in row 3"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    path = write_csv(tmp_path / "a.csv", [row_of(0), row_of(1), row_of(2, **changes)])
    with pytest.raises(DataError) as caught:
        prepare(path, None, tmp_path / "out.json")
    assert str(caught.value).startswith(f"{path}, row 4: ") and message in str(caught.value)
    assert not (tmp_path / "out.json").exists()


def test_names_that_no_file_can_have_are_missing(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "0.jpg")
    path = write_csv(tmp_path / "a.csv", [row_of(0), row_of(1, filename="x" * 5000 + ".jpg")])
    assert len(prepare(path, tmp_path, tmp_path / "out.json").missing) == 1


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [row_of(0)])
    with pytest.raises(DataError, match=r"a\.csv/out\.json cannot be written: "):
        prepare(path, None, path / "out.json")


def test_blank_lines_count_as_rows_of_the_sheet_but_are_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write_csv(path, [row_of(0)])
    path.write_text(path.read_text() + "\n" + ",,,,\n")
    assert prepare(path, None, tmp_path / "out.json").counts["train"] == 1
    path.write_text(path.read_text() + "x,[],train,1.jpg,1\n")
    with pytest.raises(DataError, match="row 5: "):
        prepare(path, None, tmp_path / "out.json")


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [row_of(0)], ["raw", "sentids", "filename"])
    with pytest.raises(DataError, match=r"no column 'split'; the header has raw, sentids, filename"):
        prepare(path, None, tmp_path / "out.json")


def test_without_sentids_there_are_none(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [row_of(0)], ["raw", "split", "filename"])
    prepare(path, None, tmp_path / "out.json")
    assert "sentids" not in load(tmp_path / "out.json")[0]


@pytest.mark.parametrize("content", [b"", b'raw,split,filename\n"["a"]",train,1.jpg\n"x', b"raw,split\xe9\n\xff"])
def test_what_is_no_table_is_one_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.csv"):
        prepare(path, None, tmp_path / "out.json")


def test_cells_beyond_the_header_are_no_table(annotations: Path) -> None:
    annotations.write_text(annotations.read_text().replace(",7\n", ",7,more\n").replace(",0\n", ",0,more\n"))
    with pytest.raises(DataError, match=r"a\.csv cannot be read as CSV: .*header"):
        prepare(annotations, None, annotations)


def test_missing_files_and_folders_say_what_to_give(annotations: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    with pytest.raises(DataError, match=r"--annotations CSV.*MINIGPT4_DATA"):
        prepare(tmp_path / "no.csv", None, out)
    with pytest.raises(DataError, match=r"--images DIR.*MINIGPT4_DATA.*--no-image-check"):
        prepare(annotations, tmp_path / "no", out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds none of the 8 images, such as 0\.jpg"):
        prepare(annotations, tmp_path / "empty", out)


def test_the_script_ends_with_one_line_on_a_mistake(tmp_path: Path) -> None:
    script = PROJECT / "prepare_flickr30k.py"
    command = [sys.executable, script, "--annotations", tmp_path / "no.csv", "--no-image-check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr and "no.csv does not exist" in done.stderr


class TestRealAnnotations:
    def test_all_of_them(self, shared_data: Path, tmp_path: Path) -> None:
        source = shared_data / "flickr_annotations_30k.csv"
        summary = prepare(source, None, tmp_path / "all.json")
        assert summary.counts == {"train": 29_000, "val": 1_014, "test": 1_000}
        assert summary.captions == (5, 5)
        records = load(tmp_path / "all.json")
        with source.open(newline="", encoding="utf-8") as file:
            for record, row in zip(records, csv.DictReader(file), strict=True):
                assert record["captions"] == json.loads(row["raw"])
                assert record["grounded_caption"] == " ".join(record["captions"])
                assert record["filename"] == row["filename"] == f"{record['image_id']}.jpg"
                assert record["split"] == row["split"]
        texts = [caption for record in records for caption in record["captions"]]
        lengths = [len(text.split()) for text in texts]
        assert sum(text.count("&amp;") for text in texts) == 89
        assert sum('"' in text for text in texts) == 828
        assert (min(lengths), max(lengths)) == (2, 78)

    def test_those_with_an_image(self, shared_data: Path, tmp_path: Path) -> None:
        images = shared_data / "images"
        summary = prepare(shared_data / "flickr_annotations_30k.csv", images, tmp_path / "some.json")
        assert summary.counts == {"train": 117, "val": 17, "test": 16}
        assert len(summary.missing) == 31_014 - 150
        truth = json.loads((shared_data / "images_captions.json").read_text())
        for record in load(tmp_path / "some.json"):
            assert record["captions"] == truth[record["filename"]]["captions"]
            assert record["split"] == truth[record["filename"]]["split"]

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minigpt4.common.boxes import Box
from minigpt4.common.errors import DataError
from minigpt4.common.types import Record
from minigpt4.datasets.readers.rows import RowProblem
from tests.datasets.conftest import write_jsonl
from tests.datasets.readers.conftest import read, records_of


def problem_of(tmp_path: Path, row: Any) -> str:
    """What a JSONL reader says about `row`, between two good rows."""
    fine = {"image": "a.jpg", "answer": "fine"}
    first, bad, last = read("jsonl", write_jsonl(tmp_path / "p.jsonl", [fine, row, fine]))
    assert isinstance(first, Record) and isinstance(last, Record) and isinstance(bad, RowProblem)
    assert str(bad).startswith(f"{tmp_path / 'p.jsonl'}, line 2: ")
    return bad.message


class TestJsonl:
    def test_five_rows(self, tmp_path: Path) -> None:
        rows = [
            {"image": "a/1.jpg", "answer": "one"},
            {"image": "2.jpg", "caption": "two", "split": "val", "id": 7},
            {"image": "3.jpg", "captions": ["three", "drei"]},
            {"image": "4.jpg", "answers": ["four"], "question": "How many?"},
            {"image": "5.jpg", "answer": "five", "instruction": "Count <Img><ImageHere></Img>.", "other": 1},
        ]
        path = write_jsonl(tmp_path / "a.jsonl", rows)
        records = records_of(read("jsonl", path))
        assert [record.image for record in records] == ["a/1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg"]
        assert [record.image_id for record in records] == ["a/1", "7", "3", "4", "5"]
        assert [record.answers for record in records] == [("one",), ("two",), ("three", "drei"), ("four",), ("five",)]
        assert [record.split for record in records] == [None, "val", None, None, None]
        assert [record.question for record in records][3:] == ["How many?", "Count <Img><ImageHere></Img>."]
        assert records[4].source == f"{path}, line 5"

    def test_a_json_list_is_the_same(self, tmp_path: Path) -> None:
        path = tmp_path / "a.json"
        path.write_text(json.dumps([{"image": "1.jpg", "answer": "one"}, {"image": 3}], indent=1))
        first, second = read("jsonl", path)
        assert isinstance(first, Record) and first.source == f"{path}, entry 1"
        assert isinstance(second, RowProblem) and second.source == f"{path}, entry 2"

    def test_blank_lines_and_odd_separators_inside_texts(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        line = json.dumps({"image": "1.jpg", "answer": "a\u2028b\u0085c"}, ensure_ascii=False)
        path.write_text(f"\ufeff{line}\r\n\n{line}\n", encoding="utf-8")
        records = records_of(read("jsonl", path))
        assert [record.answers[0] for record in records] == ["a\u2028b\u0085c"] * 2
        assert records[1].source.endswith("line 3")

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"answer": "x"}, "no 'image'"),
            ({"image": "", "answer": "x"}, "'image' is empty"),
            ({"image": ["a"], "answer": "x"}, "'image' should be a text"),
            ({"image": "a.jpg"}, "no 'answer'; found: image"),
            ({"image": "a.jpg", "anwser": "x"}, "'anwser': did you mean 'answer'?"),
            ({"image": "a.jpg", "answer": "  "}, "'answer' is empty"),
            ({"image": "a.jpg", "answer": None}, "'answer' is empty"),
            ({"image": "a.jpg", "caption": ""}, "'caption' is empty"),
            ({"image": "a.jpg", "answer": ["x"]}, "'answer' should be a text"),
            ({"image": "a.jpg", "captions": "x"}, "'captions' should be a list of texts"),
            ({"image": "a.jpg", "captions": []}, "at least one text"),
            ({"image": "a.jpg", "captions": ["x", " "]}, "no empty one"),
            ({"image": "a.jpg", "answer": "x", "caption": "y"}, "'answer' and 'caption' mean the same"),
            ({"image": "a.jpg", "answer": "x", "question": "<ImageHere> <ImageHere>"}, "2 image placeholder(s)"),
            (["a.jpg", "x"], "an object is expected"),
            (7, "an object is expected, such as"),
            ({"image": ".", "answer": "x"}, "'image' should be the path of a file, found"),
            ({"image": "/", "answer": "x"}, "'image' should be the path of a file, found"),
        ],
    )
    def test_a_bad_row_says_what_was_expected(self, tmp_path: Path, row: Any, message: str) -> None:
        assert message in problem_of(tmp_path, row)

    def test_csv_wants_the_other_reader(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text("image,answer\na.jpg,x\n")
        with pytest.raises(DataError, match=r"a\.csv: .*set reader: csv"):
            read("jsonl", path)

    def test_broken_json_names_line_and_column(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        path.write_text('{"image": "a.jpg", "answer": "x"}\n{"image": "a.jpg", "answer": x}\n')
        problem = read("jsonl", path)[1]
        assert isinstance(problem, RowProblem)
        assert str(problem).startswith(f"{path}, line 2: broken JSON (Expecting value at column 30)")

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("[" * 5000, "the JSON is nested too deeply"),
            ('{"image": "a.jpg", "answer": ' + "[" * 300 + "]" * 300 + "}", "'answer' should be a text"),
            ('{"image": "a.jpg", "answer": ' + "9" * 5000 + "}", "the JSON cannot be read"),
            ('{"image": "a.jpg", "answer": "x", "answer": "y"}', "the key 'answer' comes twice in one object"),
            ('{"image": "a.jpg", "answer": 1e999}', "'answer' should be a text, found Infinity"),
            ("\x00", "broken JSON"),
        ],
    )
    def test_lines_that_python_cannot_parse_are_named(self, tmp_path: Path, line: str, message: str) -> None:
        path = tmp_path / "a.jsonl"
        path.write_text(line + '\n{"image": "a.jpg", "answer": "fine"}\n')
        bad, fine = read("jsonl", path)
        assert isinstance(bad, RowProblem) and isinstance(fine, Record)
        assert message in bad.message and len(str(bad)) < 400

    def test_line_ends_of_old_macs(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        path.write_bytes(b'{"image": "a.jpg", "answer": "a"}\r{"image": "b.jpg", "answer": "b"}\r')
        assert [record.image for record in records_of(read("jsonl", path))] == ["a.jpg", "b.jpg"]

    def test_lone_surrogates_are_no_part_of_a_text(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        row = '{"image": "\\udce9.jpg", "captions": ["\\ud800 a"], "question": "\\ud800?", "split": "\\ud800"}'
        path.write_text(row)
        (record,) = records_of(read("jsonl", path))
        assert record.image == "\udce9.jpg"  # a file's name in Latin-1, as Python opens it
        assert (record.image_id, record.answers) == ("\ufffd", ("\ufffd a",))
        assert (record.question, record.split) == ("\ufffd?", "\ufffd")

    def test_files_that_cannot_be_read_at_all(self, tmp_path: Path) -> None:
        latin = tmp_path / "a.jsonl"
        latin.write_bytes(b'{"image": "a.jpg", "answer": "x"}\n{"image": "a.jpg", "answer": "caf\xe9"}\n')
        with pytest.raises(DataError, match=r"a\.jsonl, line 2: not UTF-8"):
            read("jsonl", latin)
        lines = write_jsonl(tmp_path / "b.json", [{}, {}])
        with pytest.raises(DataError, match=r"should be called \.jsonl"):
            read("jsonl", lines)
        (tmp_path / "c.json").write_text('{"rows": []}')
        with pytest.raises(DataError, match="a list of objects is expected, found dict"):
            read("jsonl", tmp_path / "c.json")


class TestCsv:
    def test_lone_surrogates_are_no_part_of_a_text(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text('image,captions\n1.jpg,"[""\\ud800 a"", ""\\ud83d\\ude00""]"\n')
        (record,) = records_of(read("csv", path))
        assert record.answers == ("\ufffd a", "😀")

    def test_five_rows(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text(
            "image,captions,question,split,id\n"
            '1.jpg,"[""one"", ""eins""]",,train,\n'
            '2.jpg,"[""two""]",How many?,val,22\n'
            '3.jpg,"[""three, with comma""]",,,\n'
            '4.jpg,"[""four""]","Two\nlines?",,\n'
            "5.jpg,[five],,,\n"
        )
        *rows, bad = read("csv", path)
        records = records_of(rows)
        assert [record.answers for record in records] == [
            ("one", "eins"), ("two",), ("three, with comma",), ("four",),
        ]  # fmt: skip
        assert [record.question for record in records] == [None, "How many?", None, "Two\nlines?"]
        assert [record.image_id for record in records] == ["1", "22", "3", "4"]
        assert [record.split for record in records] == ["train", "val", None, None]
        assert isinstance(bad, RowProblem)
        assert bad.source == f"{path}, row 6" and "'captions' should be a JSON list" in bad.message

    def test_too_many_and_too_few_cells(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text("image,answer\n1.jpg,a dog, and a cat\n2.jpg\n")
        many, few = read("csv", path)
        assert isinstance(many, RowProblem) and "quote a text" in many.message
        assert isinstance(few, RowProblem) and "'answer' is empty" in few.message

    def test_an_open_quote_is_an_error(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text('image,answer\n1.jpg,"a dog\n2.jpg,b\n')
        with pytest.raises(DataError, match="broken CSV"):
            read("csv", path)

    @pytest.mark.parametrize("cell", ["[" * 5000, "[" + "9" * 5000 + "]", "[a"])
    def test_a_cell_that_is_no_json_is_named(self, tmp_path: Path, cell: str) -> None:
        path = tmp_path / "a.csv"
        path.write_text(f"image,captions\n1.jpg,{cell}\n")
        (bad,) = read("csv", path)
        assert isinstance(bad, RowProblem) and "'captions' should be a JSON list" in bad.message
        assert len(bad.message) < 200

    def test_a_column_that_occurs_twice(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text("image,answer,answer\n1.jpg,a,b\n")
        with pytest.raises(DataError, match=r"a\.csv: the header has the column 'answer' twice"):
            read("csv", path)
        path.write_text("image,answer,,\n1.jpg,a,,\n")  # as spreadsheets write empty columns
        assert len(records_of(read("csv", path))) == 1

    @pytest.mark.parametrize("end", ["\r", "\r\n"])
    def test_a_byte_order_mark_and_other_line_ends(self, tmp_path: Path, end: str) -> None:
        path = tmp_path / "a.csv"
        path.write_bytes(f"\ufeffimage,answer{end}1.jpg,a{end}2.jpg,b{end}".encode())
        assert [record.image for record in records_of(read("csv", path))] == ["1.jpg", "2.jpg"]

    @pytest.mark.parametrize("content", ["", "image,answer\n", "\n\n"])
    def test_no_row(self, tmp_path: Path, content: str) -> None:
        path = tmp_path / "a.csv"
        path.write_text(content)
        assert read("csv", path) == []

    def test_a_cell_that_is_too_long(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text(f"image,answer\n1.jpg,{'a' * 200_000}\n")
        with pytest.raises(DataError, match="broken CSV"):
            read("csv", path)


class TestConversations:
    turns = ({"question": "What is it?", "answer": "A dog."}, {"question": "Why?", "answer": "Because."})

    def test_images_and_turns(self, tmp_path: Path) -> None:
        rows = [
            {"images": ["a.jpg", "b.jpg"], "question": "What changed?", "answer": "The hat."},
            {"image": "a.jpg", "conversation": self.turns, "answers": None, "question": ""},
            {"images": [], "id": "poem", "question": "Write a poem.", "answer": "A poem."},
        ]
        two, talk, text = records_of(read("jsonl", write_jsonl(tmp_path / "a.jsonl", rows)))
        assert (two.images, two.image, two.image_id) == (("a.jpg", "b.jpg"), "a.jpg", "a")
        assert (talk.earlier, talk.question, talk.answers) == ((("What is it?", "A dog."),), "Why?", ("Because.",))
        assert (text.images, text.image, text.image_id, text.earlier) == ((), "", "poem", ())

    def test_lists_in_cells_of_a_csv(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        turns = json.dumps(self.turns).replace('"', '""')
        path.write_text(f'id,images,conversation\nt,"[""a.jpg"", ""b.jpg""]","{turns}"\n')
        (record,) = records_of(read("csv", path))
        assert (record.images, record.earlier) == (("a.jpg", "b.jpg"), (("What is it?", "A dog."),))

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"image": "a.jpg", "images": ["b.jpg"], "answer": "x"}, "'image' and 'images' mean the same"),
            ({"images": "a.jpg", "answer": "x"}, "'images' should be a list of paths, found \"a.jpg\""),
            ({"images": ["a.jpg", ""], "answer": "x"}, "'images' should be a list of paths"),
            ({"images": ["a.jpg", "b.jpg"], "answer": "x"}, "a row with 2 images needs a 'question'"),
            ({"images": [], "id": "1", "answer": "x"}, "a row with no images needs a 'question'"),
            ({"images": [], "question": "q", "answer": "x"}, "a row without an image needs an 'id'"),
            ({"image": "a.jpg", "conversation": turns, "answer": "x"}, "'conversation' and 'answer' mean the same"),
            ({"image": "a.jpg", "conversation": []}, "'conversation' should be a list such as"),
            ({"image": "a.jpg", "conversation": [{"question": "q"}]}, "turn 1 of 'conversation' should have"),
            ({"image": "a.jpg", "conversation": [{**turns[0], "from": "x"}]}, "turn 1 of 'conversation' should have"),
            (
                {"images": ["a.jpg", "b.jpg"], "question": "Is <Img><ImageHere></Img> red?", "answer": "x"},
                "1 image placeholder(s) for 2 image(s)",
            ),
        ],
    )
    def test_rows_that_cannot_be_used(self, tmp_path: Path, row: Any, message: str) -> None:
        assert message in problem_of(tmp_path, row)


class TestGrounding:
    def test_kind_boxes_and_choices(self, tmp_path: Path) -> None:
        row = {"image": "a.jpg", "id": "q1", "question": "Where is the dog?", "answer": "left"}
        boxes = [[0, 0.1, 0.25, 1], {"box": [0.5, 0.5, 1, 0.75], "label": "dog"}, {"box": [0.5, 0.5, 1, 0.75]}]
        rows = [row, row | {"kind": "place", "boxes": boxes, "choices": ["left", "right"]}]
        plain, full = records_of(read("jsonl", write_jsonl(tmp_path / "a.jsonl", rows)))
        assert (plain.kind, plain.boxes, plain.choices) == ("", (), ())
        assert full.boxes == (Box(0, 0.1, 0.25, 1), Box(0.5, 0.5, 1, 0.75, "dog"), Box(0.5, 0.5, 1, 0.75))
        assert (full.kind, full.choices) == ("place", ("left", "right"))

    def test_an_answer_names_true_boxes_rounded_or_cut_off(self, tmp_path: Path) -> None:
        boxes = [[0.108, 0.2, 0.399, 0.5], [0.5, 0.5, 1, 1]]
        rows = [
            {"image": "a.jpg", "answer": answer, "boxes": boxes}
            for answer in ("{<11><20><40><50>}", "{<10><20><39><50>}")
        ]
        first, second = records_of(read("jsonl", write_jsonl(tmp_path / "a.jsonl", rows)))
        assert first.boxes == second.boxes == (Box(0.108, 0.2, 0.399, 0.5), Box(0.5, 0.5, 1, 1))

    def test_in_cells_of_a_csv(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text(
            'image,answer,kind,boxes,choices\na.jpg,x,k,"[[0, 0, 1, 0.5]]","[""x"", ""y""]"\nb.jpg,x,,,\n'
        )
        full, plain = records_of(read("csv", tmp_path / "a.csv"))
        assert (full.kind, full.boxes, full.choices) == ("k", (Box(0, 0, 1, 0.5),), ("x", "y"))
        assert (plain.kind, plain.boxes, plain.choices) == ("", (), ())

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"kind": 1.5}, "'kind' should be a text"),
            ({"boxes": "0 0 1 1"}, "'boxes' should be a list of [left, top, right, bottom]"),
            ({"boxes": [0, 0, 1, 1]}, "box 1 of 'boxes' should be [left, top, right, bottom], found 0"),
            ({"boxes": [[0, 0, 1, 1], [0, 0, 1]]}, "box 2 of 'boxes' should be"),
            ({"boxes": [[0, 0, True, 1]]}, "box 1 of 'boxes' should be"),
            ({"boxes": [[0, 0, 64, 48]]}, "divide pixels by the image's width and height"),
            ({"boxes": [[0.5, 0, 0.5, 1]]}, "should have 0 <= left < right <= 1"),
            ({"boxes": [[0, 0.9, 1, 0.1]]}, "should have 0 <= left < right <= 1"),
            ({"boxes": [[-0.1, 0, 1, 1]]}, "should have 0 <= left < right <= 1"),
            ({"boxes": [[0, 0, float("nan"), 1]]}, "should have 0 <= left < right <= 1"),
            ({"boxes": [{"box": [0, 0, 1, 1], "name": "dog"}]}, "should have a 'box' and perhaps a 'label'"),
            ({"boxes": [{"box": [0, 0, 1, 1], "label": ["dog"]}]}, "'label' should be a text"),
            ({"answer": "{<120><30><200><90>}"}, "the box {<120><30><200><90>} should be"),
            ({"answers": ["a dog", "a dog {<9><1><2><3>}"], "answer": ""}, "the box {<9><1><2><3>} should be"),
            ({"question": "[identify] {<1><2><3>}"}, "the box {<1><2><3>} should be"),
            (
                {"answer": "", "conversation": [{"question": "q {<0><0><0.5><1>}", "answer": "a"}] * 2},
                "the box {<0><0><0.5><1>} should be",
            ),
            (
                {"answer": "{<10><20><30><40>}", "boxes": [[0.1, 0.2, 0.3, 0.45]]},
                "the answer names the box {<10><20><30><40>}, which is not among 'boxes', [[0.1, 0.2, 0.3, 0.45]]",
            ),
            ({"choices": "x"}, "'choices' should be a list of texts"),
            ({"choices": ["x"]}, "'choices' should be at least two different texts"),
            ({"choices": ["x", "x", "y"]}, "'choices' should be at least two different texts"),
            ({"choices": ["y", "z"]}, "the answer \"x\" is not among 'choices'"),
        ],
    )
    def test_what_is_no_box_or_choice(self, tmp_path: Path, row: Any, message: str) -> None:
        assert message in problem_of(tmp_path, {"image": "a.jpg", "answer": "x", **row})

"""The readers of published sets: the official layouts that the cards' fixtures lack, and rows that cannot be used."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from minigpt4.common import json_array
from minigpt4.common.boxes import Box, box_of_pixels
from minigpt4.common.errors import DataError
from minigpt4.common.registry import readers
from minigpt4.common.types import Record
from minigpt4.datasets.readers.referring import unpickle
from minigpt4.datasets.readers.rows import RowProblem
from tests.datasets.public_layouts import write_json, write_lines, write_refs
from tests.datasets.readers.conftest import read, records_of


class TestCaptions:
    def test_the_captions_of_cocos_own_file_are_joined_by_image(self, tmp_path: Path) -> None:
        images = [{"id": 9, "file_name": "COCO_val2014_000000000009.jpg"}, {"id": 8, "file_name": "b.jpg"}]
        annotations = [{"image_id": 9, "id": 1, "caption": "A cat."}, {"image_id": 8, "id": 2, "caption": "A hen."}]
        annotations.append({"image_id": 9, "id": 3, "caption": "One cat."})
        path = write_json(tmp_path / "captions_val2014.json", {"images": images, "annotations": annotations})
        cat, hen = records_of(read("captions", path))
        assert (cat.image_id, cat.image, cat.answers) == ("9", "COCO_val2014_000000000009.jpg", ("A cat.", "One cat."))
        assert (hen.answers, hen.source) == (("A hen.",), f"{path}, annotation 2")

    def test_karpathys_file_with_its_splits(self, tmp_path: Path) -> None:
        rows = [
            {"filepath": "val2014", "filename": f"{split}.jpg", "cocoid": number, "split": split,
             "sentences": [{"raw": "A cat.", "tokens": ["a", "cat"]}, {"raw": "One cat."}]}
            for number, split in enumerate(("train", "restval", "val", "test"))
        ]  # fmt: skip
        path = write_json(tmp_path / "dataset_coco.json", {"images": rows, "dataset": "coco"})
        records = records_of(read("captions", path))
        assert [(record.image, record.split) for record in records] == [
            ("val2014/train.jpg", "train"), ("val2014/restval.jpg", "train"),
            ("val2014/val.jpg", "val"), ("val2014/test.jpg", "test"),
        ]  # fmt: skip
        assert records[1].image_id == "1" and records[1].answers == ("A cat.", "One cat.")

    def test_rows_that_cannot_be_used(self, tmp_path: Path) -> None:
        rows = [
            {"image": "a.jpg", "caption": "fine"},
            {"caption": "x"},
            {"image": "b.jpg"},
            {"image": "c", "caption": []},
        ]
        path = write_json(tmp_path / "a.json", rows)
        fine, *problems = read("captions", path)
        assert isinstance(fine, Record)
        assert [str(problem).removeprefix(f"{path}, ") for problem in problems] == [
            "entry 2: no 'image'",
            "entry 3: no 'caption'",
            "entry 4: 'caption' should hold at least one text and no empty one, found []",
        ]

    def test_a_caption_of_no_image(self, tmp_path: Path) -> None:
        content = {"images": [{"id": 1}], "annotations": [{"image_id": n, "caption": "x"} for n in (1, 2)]}
        problems = read("captions", write_json(tmp_path / "a.json", content))
        assert [problem.message for problem in problems if isinstance(problem, RowProblem)] == [
            f"no image with a 'file_name' has the id {n}" for n in (1, 2)
        ]

    def test_an_id_of_two_images_is_refused(self, tmp_path: Path) -> None:
        images = [{"id": 1, "file_name": "a.jpg"}, {"id": "1", "file_name": "b.jpg"}]
        content = {"images": images, "annotations": [{"image_id": 1, "caption": "x"}]}
        with pytest.raises(DataError, match=r'a\.json: the id "1" comes twice, with different entries'):
            read("captions", write_json(tmp_path / "a.json", content))


def write_vqav2(folder: Path, answers: list[str], question_id: int = 7) -> Path:
    """The official files of VQAv2 with one question; returns that of the annotations."""
    questions = {"questions": [{"image_id": 42, "question": "Is it red?", "question_id": question_id}]}
    write_json(folder / "v2_OpenEnded_mscoco_val2014_questions.json", questions)
    row = {"question_id": 7, "image_id": 42, "question_type": "is it", "answer_type": "yes/no"}
    given = [{"answer": text, "answer_id": number} for number, text in enumerate(answers)]
    content = {"data_subtype": "val2014", "annotations": [row | {"multiple_choice_answer": "no", "answers": given}]}
    return write_json(folder / "v2_mscoco_val2014_annotations.json", content)


AOKVQA = {"split": "val", "image_id": 299207, "question_id": "22Me", "question": "What is it?", "direct_answers": ["a"],
          "choices": ["cat", "dog", "cow"], "correct_choice_idx": 2}  # fmt: skip


class TestVqa:
    def test_the_official_files_of_vqav2(self, tmp_path: Path) -> None:
        (record,) = records_of(read("vqa", write_vqav2(tmp_path, ["no", "no", "yes"])))
        assert (record.image_id, record.question, record.answers) == ("7", "Is it red?", ("no", "no", "yes"))
        assert record.image == "val2014/COCO_val2014_000000000042.jpg"
        assert (record.kind, record.split) == ("yes/no", "val")

    def test_the_questions_are_missing_or_others(self, tmp_path: Path) -> None:
        path = write_vqav2(tmp_path, ["no"], question_id=8)
        (problem,) = read("vqa", path)
        assert isinstance(problem, RowProblem) and problem.message == "no 'question'"
        questions = tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json"
        twice = [{"question_id": 7, "question": text} for text in ("Is it red?", "Is it blue?")]
        write_json(questions, {"questions": twice})
        with pytest.raises(DataError, match=r'questions\.json: the question_id "7" comes twice'):
            read("vqa", path)
        questions.unlink()
        with pytest.raises(DataError, match="its questions should lie beside it"):
            read("vqa", path)

    def test_an_image_id_of_the_official_files_that_is_none(self, tmp_path: Path) -> None:
        path = write_vqav2(tmp_path, ["no"])
        content = json.loads(path.read_text())
        content["annotations"] = [content["annotations"][0] | {"image_id": bad} for bad in (None, [42])]
        missing, other = read("vqa", write_json(path, content))
        assert isinstance(missing, RowProblem) and missing.message == "no 'image'"
        assert isinstance(other, RowProblem) and other.message == "'image_id' should be a text, found [42]"

    def test_what_to_choose_from(self, tmp_path: Path) -> None:
        path = write_json(tmp_path / "aokvqa.json", [AOKVQA])
        (record,) = records_of(read("vqa_choices", path))
        assert (record.answers, record.choices) == (("cow",), ("cat", "dog", "cow"))
        assert (record.image, record.split, record.image_id) == ("000000299207.jpg", "val", "22Me")
        assert records_of(read("vqa", path))[0].answers == ("a",)

    @pytest.mark.parametrize("number", [None, 3, -1, True, "0"])
    def test_a_choice_that_is_none(self, number: Any, tmp_path: Path) -> None:
        (problem,) = read("vqa_choices", write_json(tmp_path / "a.json", [AOKVQA | {"correct_choice_idx": number}]))
        assert isinstance(problem, RowProblem) and "'correct_choice_idx' should be from 0 to 2" in problem.message

    def test_questions_of_vizwiz_are_named_by_their_images(self, tmp_path: Path) -> None:
        row = {"image": "VizWiz_val_00000007.jpg", "question": "What?", "answer_type": "other", "answerable": 1,
               "answers": [{"answer": "can", "answer_confidence": "yes"}, {"answer": "tin"}]}  # fmt: skip
        test = {"image": "VizWiz_test_00000001.jpg", "question": "What?"}  # published without answers
        record, problem = read("vqa", write_json(tmp_path / "a.json", [row, test]))
        assert isinstance(record, Record) and record.image_id == "VizWiz_val_00000007"
        assert (record.answers, record.kind) == (("can", "tin"), "other")
        assert str(problem).startswith(f"{tmp_path / 'a.json'}, entry 2: no 'question_id'")

    @pytest.mark.parametrize("reader", ["vqa", "vqa_choices"])
    def test_answers_of_iconqa_are_numbers_of_choices(self, reader: str, tmp_path: Path) -> None:
        row = {"question": "How many?", "choices": ["1", "2", "0"], "answer": 1, "ques_type": "choose_txt",
               "grade": "prek", "split": "test"}  # fmt: skip
        other = {"7": row | {"ques_type": "choose_img"}, "8": row | {"ques_type": "fill_in_blank", "answer": "1"}}
        changes = [{"answer": "2"}, {"answer": 3}, {"answer": -1}, {"answer": None}, {"split": None}, {"choices": "2"}]
        rows = {"5": row} | other | {f"{n}": row | change for n, change in enumerate(changes, 10)}
        path = write_json(tmp_path / "problems.json", rows)
        first, as_text, *problems = read(reader, path)
        assert isinstance(first, Record) and (first.image_id, first.answers, first.kind) == ("5", ("2",), "prek")
        assert (first.image, first.split) == ("test/choose_txt/5/image.png", "test")
        assert isinstance(as_text, Record) and as_text.answers == ("0",)
        assert [str(problem) for problem in problems] == [
            f"{path}, entry {json.dumps(str(number))}: {message}"
            for number, message in enumerate(
                (
                    "'answer' should be from 0 to 2, found 3",
                    "'answer' should be from 0 to 2, found -1",
                    "'answer' should be from 0 to 2, found null",
                    "no 'split', a part of the image's path",
                    "'choices' should be a list of texts, found \"2\"",
                ),
                11,
            )
        ]
        (problem,) = read(reader, write_json(tmp_path / "list.json", [row]))
        assert isinstance(problem, RowProblem) and problem.message == "no 'question_id', a part of the image's path"

    def test_rows_that_cannot_be_used(self, tmp_path: Path) -> None:
        row = {"image": "a.jpg", "question_id": 1, "question": "What?", "answer": "x"}
        rows: list[Any] = [
            row | {"question": ""}, row | {"question_id": None}, row | {"image": None}, row | {"answer": None}, 7,
            row | {"answer": ["x", ""]},
        ]  # fmt: skip
        problems = read("vqa", write_json(tmp_path / "a.json", rows))
        expected = [
            "no 'question'",
            "no 'question_id'",
            "no 'image'",
            "no 'answers'",
            "an object is expected",
            "no empty",
        ]
        for problem, message in zip(problems, expected, strict=True):
            assert isinstance(problem, RowProblem) and message in problem.message

    def test_a_book_with_fewer_answers_than_questions_or_another_url(self, tmp_path: Path) -> None:
        book = {"imageURL": "http://a.org/x.jpg", "split": 1, "questions": ["a?", "b?"], "answers": ["a", "b"]}
        books = {"031": book | {"answers": ["a"]}, "032": book | {"imageURL": ["x.jpg"]}, "033": book}
        fewer, other, *fine = read("vqa", write_json(tmp_path / "dataset.json", books))
        for problem, key in ((fewer, '"031"'), (other, '"032"')):
            assert isinstance(problem, RowProblem) and key in problem.source
            assert "in 'answers' as many as in 'questions', are expected, found" in problem.message
        assert [record.image for record in records_of(fine)] == ["033.jpg"] * 2


VSR = {"image": "1.jpg", "caption": "The cat is left of the car.", "label": 1, "relation": "left of"}
MEME = {"id": 8291, "img": "img/08291.png", "label": 0, "text": "mean people"}


class TestStatements:
    def test_what_is_said_of_a_label(self, tmp_path: Path) -> None:
        rows = [VSR, VSR | {"label": 0, "relation": "amid"}]
        true, false = records_of(read("vsr", write_lines(tmp_path / "dev.jsonl", rows)))
        assert (true.answers, true.kind, true.image_id, true.choices) == (("true",), "Projective", "dev-1", ())
        assert (false.answers, false.kind, false.image_id) == (("false",), "amid", "dev-2")
        rows = [MEME, MEME | {"label": 1, "id": "17"}]
        kind, mean = records_of(read("hateful_memes", write_lines(tmp_path / "dev.jsonl", rows)))
        assert (kind.image_id, kind.image, kind.question) == ("8291", "img/08291.png", "mean people")
        assert (kind.answers, mean.answers, mean.image_id) == (("no",), ("yes",), "17")

    @pytest.mark.parametrize(("reader", "expected"), [("vsr", ("false", "true")), ("hateful_memes", ("no", "yes"))])
    def test_what_to_choose_from(self, reader: str, expected: tuple[str, str], tmp_path: Path) -> None:
        path = write_lines(tmp_path / "dev.jsonl", [VSR | MEME])
        (record,) = records_of(read(f"{reader}_choices", path))
        assert record.choices == expected and record.answers == (expected[0],)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"img": None}, "no 'img'"),
            ({"text": " "}, "no 'text'"),
            ({"text": ["a"]}, "'text' should be a text"),
            ({"label": None}, "no 'label'; the test files of a challenge lack it"),
            ({"label": True}, "'label' should be 0 or 1, found true"),
            ({"label": "1"}, "'label' should be 0 or 1, found \"1\""),
            ({"label": 2}, "'label' should be 0 or 1, found 2"),
        ],
    )
    def test_rows_that_cannot_be_used(self, change: dict[str, Any], message: str, tmp_path: Path) -> None:
        path = write_lines(tmp_path / "dev.jsonl", [MEME, MEME | change, 3])
        (tmp_path / "dev.jsonl").write_text(path.read_text() + "{\n")
        fine, problem, number, broken = read("hateful_memes", path)
        assert isinstance(fine, Record) and str(problem).startswith(f"{path}, line 2: {message}")
        assert "an object is expected" in str(number) and str(broken).startswith(f"{path}, line 4: broken JSON")


class Unsafe:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


class TestReferring:
    @pytest.mark.parametrize("protocol", [0, 1, 2, 4])
    def test_a_pickle_that_runs_code_is_refused_by_name(self, protocol: int, tmp_path: Path) -> None:
        (tmp_path / "refs.p").write_bytes(pickle.dumps([Unsafe(tmp_path / "ran")], protocol=protocol))
        with pytest.raises(DataError, match=r"refs\.p is no pickle of plain data \(it names (posix|nt)\.mkdir"):
            unpickle(tmp_path / "refs.p")
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("content", [b"", b"\x80", b"]q\x00(", b"not a pickle", b"\x80\x02c__builtin__\neval\n."])
    def test_what_is_no_pickle(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "refs.p").write_bytes(content)
        with pytest.raises(DataError, match="no pickle of plain data"):
            unpickle(tmp_path / "refs.p")

    def test_a_pickle_of_python_2(self, tmp_path: Path) -> None:
        (tmp_path / "refs.p").write_bytes(b"(lp0\n(dp1\nS'raw'\np2\nS'caf\\xc3\\xa9'\np3\nsS'ref_id'\np4\nI7\nsa.")
        assert unpickle(tmp_path / "refs.p") == [{"raw": "café", "ref_id": 7}]

    def test_objects_that_cannot_be_found(self, tmp_path: Path) -> None:
        listed = write_refs(tmp_path, "refs.p", split="testA")
        changes = [{"ann_id": 9}, {"image_id": 9}, {"ref_id": None}, {"sentences": []}, {"sentences": [{"sent_id": 1}]}]
        rows = [listed[0], *(listed[1] | change for change in changes), 5]
        (tmp_path / "refs.p").write_bytes(pickle.dumps(rows, protocol=2))
        first, second, *problems = read("refer", tmp_path / "refs.p")
        assert isinstance(first, Record) and isinstance(second, Record) and first.split == "testA"
        expected = ["no annotation 9", "no image 9", "no 'ref_id'", "'sentences' should be", "a sentence should have"]
        for number, (problem, message) in enumerate(zip(problems, [*expected, "an object"], strict=True), 2):
            assert isinstance(problem, RowProblem) and message in problem.message
            assert problem.source == f"{tmp_path / 'refs.p'}, reference {number}"

    def test_files_that_disagree(self, tmp_path: Path) -> None:
        listed = write_refs(tmp_path, "refs.p", refs=1)
        (tmp_path / "refs.p").write_bytes(pickle.dumps([listed[0] | {"image_id": 2}]))
        (problem,) = read("refer", tmp_path / "refs.p")
        assert isinstance(problem, RowProblem)
        assert problem.message == "it is about image 2, but annotation 51 of instances.json about image 1"
        content = json.loads((tmp_path / "instances.json").read_text())
        for name in ("images", "annotations", "categories"):
            again = content[name][0] | {"bbox": [0, 0, 1, 1], "width": 9, "name": "cat"}
            write_json(tmp_path / "instances.json", content | {name: [*content[name], again]})
            with pytest.raises(DataError, match=r"instances\.json: the id .* comes twice, with different entries"):
                read("refer", tmp_path / "refs.p")

    def test_boxes_beyond_the_image_are_cut_off_and_others_refused(self) -> None:
        assert box_of_pixels([-10, 5, 20, 50], 100, 50) == Box(0, 0.1, 0.1, 1)
        for bbox in (
            [0, 0, 0, 5],
            [0, 0, float("nan"), 5],
            [100, 0, 5, 5],
            [-5, 0, 5, 5],
            [0, 0, 5],
            None,
            ["0", 0, 1, 1],
        ):
            with pytest.raises(DataError, match="'bbox'"):
                box_of_pixels(bbox, 100, 50)
        with pytest.raises(DataError, match="pixels above 0"):
            box_of_pixels([0, 0, 5, 5], 0, 50)


class TestVisualGenome:
    def write(self, folder: Path, images: int) -> None:
        listed = [
            {"image_id": n, "width": 40, "height": 20, "url": f"https://a.edu/VG_100K/{n}.jpg"} for n in range(images)
        ]
        write_json(folder / "image_data.json", listed)
        box = {"x": 4, "y": 5, "width": 8, "height": 10}
        rows = [
            {"id": n, "regions": [{"region_id": 10 * n + k, "image_id": n, "phrase": "a leaf"} | box for k in range(5)]}
            for n in range(images)
        ]
        write_json(folder / "region_descriptions.json", rows)

    def test_only_a_part_of_the_file_is_in_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What stands behind the regions that were asked for is not even read: it is broken."""
        monkeypatch.setattr(json_array, "CHUNK", 4096)
        self.write(tmp_path, 200)
        path = tmp_path / "region_descriptions.json"
        path.write_bytes(path.read_bytes()[:50_000])
        rows = readers.get("visual_genome")().read(tmp_path)
        first = list(islice(rows, 100))
        assert [record.image_id for record in records_of(first)][:6] == ["0", "1", "2", "3", "4", "10"]
        with pytest.raises(DataError, match=r"region_descriptions\.json: truncated at byte"):
            list(rows)

    def test_the_other_way_round(self, tmp_path: Path) -> None:
        self.write(tmp_path, 1)
        record = records_of(read("visual_genome_identify", tmp_path))[0]
        assert (record.question, record.answers) == ("{<10><25><30><75>}", ("a leaf",))

    def test_images_that_cannot_be_told_are_refused(self, tmp_path: Path) -> None:
        self.write(tmp_path, 1)
        (row,) = json.loads((tmp_path / "image_data.json").read_text())
        write_json(tmp_path / "image_data.json", [row, row, row | {"width": 80}])
        with pytest.raises(DataError, match=r"image_data\.json, entry 3: the image_id 0 comes twice"):
            read("visual_genome", tmp_path)
        for bad in (row | {"url": 3}, row | {"url": "/"}, row | {"image_id": None}, "x"):
            write_json(tmp_path / "image_data.json", [row, bad])
            with pytest.raises(DataError, match=r"image_data\.json, entry 2: an object with 'image_id', 'url'"):
                read("visual_genome", tmp_path)

    def test_large_regions_are_left_out(self, tmp_path: Path) -> None:
        self.write(tmp_path, 1)
        (image,) = json.loads((tmp_path / "image_data.json").read_text())
        write_json(tmp_path / "image_data.json", [image | {"width": 200, "height": 200}])
        region = {"image_id": 0, "phrase": "a leaf", "x": 0, "y": 0, "width": 128}
        regions = [region | {"region_id": height, "height": height} for height in (127, 128, 129)]
        write_json(tmp_path / "region_descriptions.json", [{"id": 0, "regions": regions}])
        assert [record.image_id for record in records_of(read("visual_genome", tmp_path))] == ["127"]

    def test_regions_that_cannot_be_used(self, tmp_path: Path) -> None:
        self.write(tmp_path, 1)
        fine = {"region_id": 1, "image_id": 0, "phrase": "a leaf", "x": 4, "y": 5, "width": 8, "height": 10}
        bad: list[Any] = [fine | {"image_id": 7}, fine | {"phrase": " "}, fine | {"width": "8"}, fine | {"x": None}, 3]
        write_json(tmp_path / "region_descriptions.json", [{"id": 0, "regions": [*bad, fine]}, {"id": 1}])
        *problems, record, row = read("visual_genome", tmp_path)
        assert isinstance(record, Record) and len(problems) == len(bad)
        assert all(isinstance(problem, RowProblem) for problem in (*problems, row))


class TestConversations:
    turns = ({"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."})

    def read_one(self, tmp_path: Path, row: Any) -> Record | RowProblem:
        (found,) = read("conversations", write_json(tmp_path / "a.json", [row]))
        return found

    def test_several_images_and_none(self, tmp_path: Path) -> None:
        two = [{"from": "human", "value": "Is <image> like <image>?"}, self.turns[1]]
        record = self.read_one(tmp_path, {"id": "1", "image": ["a.jpg", "b.jpg"], "conversations": two})
        assert isinstance(record, Record) and record.images == ("a.jpg", "b.jpg")
        assert record.question == "Is <Img><ImageHere></Img> like <Img><ImageHere></Img>?"
        text = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi <p>you</p> {<1><2><3><4>}"}]
        record = self.read_one(tmp_path, {"id": "1", "conversations": text})
        assert isinstance(record, Record) and record.images == ()
        assert record.boxes == (Box(0.01, 0.02, 0.03, 0.04, "you"),)

    def test_an_image_is_named_by_its_id(self, tmp_path: Path) -> None:
        record = self.read_one(tmp_path, {"id": "000000000042", "conversations": self.turns})
        assert isinstance(record, Record) and (record.images, record.question) == (("000000000042.jpg",), "What?")

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({}, "'conversations' should be a list of objects"),
            ({"conversations": []}, "human and gpt in turn"),
            ({"conversations": [turns[0]]}, "human and gpt in turn, and gpt at the end"),
            ({"conversations": [*turns, turns[1]]}, "human and gpt in turn"),
            ({"image": "a.jpg", "conversations": [turns[0], {"from": "gpt", "value": " "}]}, "a text is empty"),
            ({"image": ["a.jpg", "b.jpg"], "conversations": turns}, "1 image placeholder(s) for 2 image(s)"),
            ({"image": "a.jpg", "conversations": [*turns, *turns]}, "2 image placeholder(s) for 1 image(s)"),
            (
                {"image": "a.jpg", "conversations": [turns[0], {"from": "gpt", "value": "<p>x</p> {<1><2><3><400>}"}]},
                "the box {<1><2><3><400>} should be",
            ),
            ({"image": [3], "conversations": turns}, "'image' should be a path or a list of paths"),
        ],
    )
    def test_rows_that_cannot_be_used(self, tmp_path: Path, row: Any, message: str) -> None:
        problem = self.read_one(tmp_path, row)
        assert isinstance(problem, RowProblem) and message in problem.message


def test_instructions_are_lines_too_and_bad_ones_are_named(tmp_path: Path) -> None:
    instance = {"instruction_with_input": "Add 1.", "constraints": None, "output": " 2 "}
    lines = [json.dumps({"instances": [instance, instance | {"constraints": "Be brief."}]}), "{", '{"instances": []}']
    lines.append(json.dumps({"instances": [{"output": "2"}]}))
    (tmp_path / "core_data.jsonl").write_text("\n".join(lines))
    first, second, *problems = read("instructions", tmp_path / "core_data.jsonl")
    assert isinstance(first, Record) and (first.question, first.answers, first.images) == ("Add 1.", ("2",), ())
    assert isinstance(second, Record) and second.question == "Add 1. Be brief."
    assert (first.image_id, second.image_id) == ("instruction-1-1", "instruction-1-2")
    messages = [problem.message for problem in problems if isinstance(problem, RowProblem)]
    assert "broken JSON" in messages[0]
    assert len(messages) == 3 and all("'instances' is expected" in message for message in messages[1:])


def test_texts_without_their_boxes_are_refused(tmp_path: Path) -> None:
    rows = [
        {"image_id": 1, "phrase": "a man", "bbox": "{<9><9><5><50>}"},
        {"image_id": 1, "caption": "x", "output": "y"},
        {"image_id": 1, "grounded_caption": "<p>x</p> {<1><2><3><4>} <p>y</p> {<1><2><300><4>}"},
    ]
    rows += [{"phrase": "x", "bbox": "y"}, {"image_id": 1}]
    problems = read("grounded", write_json(tmp_path / "a.json", rows))
    expected = [
        "the box {<9><9><5><50>}",
        "no box such as",
        "the box {<1><2><300><4>} should be",
        "no 'image_id'",
        "'grounded_caption', 'caption' and 'output', or",
    ]
    for problem, message in zip(problems, expected, strict=True):
        assert isinstance(problem, RowProblem) and message in problem.message


@pytest.mark.parametrize("reader", ["captions", "vqa", "vsr", "grounded", "conversations", "instructions"])
@pytest.mark.parametrize("content", ["", "{}", "[", '{"a": 1}', "7", "[1, 2"])
def test_another_form_is_refused(reader: str, content: str, tmp_path: Path) -> None:
    """Nothing of such a file becomes a record: it is refused as a whole, or row by row."""
    (tmp_path / "a.json").write_text(content)
    try:
        rows = read(reader, tmp_path / "a.json")
    except DataError as error:
        assert "a.json" in str(error)
    else:
        assert not any(isinstance(row, Record) for row in rows)

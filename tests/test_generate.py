"""Answers about many images: folders and rows, resumed, sharded."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from minigpt4 import api
from minigpt4.api import LoadedModel
from minigpt4.common.boxes import TASKS
from minigpt4.common.distributed import Processes
from minigpt4.common.errors import DataError
from minigpt4.common.files import PROJECT
from minigpt4.conversation.template import Template
from minigpt4.generate import AnswerFile, Question, main, questions_of_files, questions_of_jsonl, row_of
from minigpt4.models.loading import ChosenPrecision
from tests.drawn import drawn_scenes
from tests.launch import launch


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images and a broken one."""
    images = tmp_path / "images"
    (images / "deeper").mkdir(parents=True)
    for number, scene in enumerate(drawn_scenes()[:6]):
        scene.save(images / ("deeper" if number == 5 else "") / f"{number}.png")
    (images / "3b.jpg").write_bytes(b"not an image")
    (images / "notes.txt").write_text("not an image either")
    return images


@pytest.fixture
def asked(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that the model, which is loaded already, was given."""
    sizes: list[int] = []

    def describe(images: Sequence[Any], *args: Any, **options: Any) -> list[str]:
        sizes.append(len(images))
        return LoadedModel.describe(tiny, images, *args, **options)

    spy = copy(tiny)
    monkeypatch.setattr(spy, "describe", describe)
    monkeypatch.setattr(api, "from_config", lambda *_, **__: spy)
    return sizes


def generate(out: Path, *arguments: str) -> list[dict[str, str]]:
    main(["--out", str(out), "--options", "run.device=cpu", *arguments])
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_a_folder_with_a_broken_image(folder: Path, tmp_path: Path, asked: list[int], tiny: LoadedModel) -> None:
    rows = generate(tmp_path / "out.jsonl", "--images", str(folder), "--batch-size", "4")
    names = ["0.png", "1.png", "2.png", "3.png", "3b.jpg", "4.png", "deeper/5.png"]
    assert [row["image"] for row in rows] == [str(folder / name) for name in names]
    broken = rows.pop(4)
    assert "answer" not in broken
    assert broken["error"].startswith(f"image {folder / '3b.jpg'} cannot be read")
    assert [row["answer"] for row in rows] == tiny.describe([row["image"] for row in rows])
    assert sum(p.is_named_in(row["answer"]) for p, row in zip(drawn_scenes()[:6], rows, strict=True)) >= 5
    assert asked[0] == 4


def test_rows_with_questions(folder: Path, tmp_path: Path, asked: list[int]) -> None:
    lines = [
        {"image": "images/1.png", "question": "How many objects are there?", "id": 7},
        {"image": "images/1.png"},
        {"image": "images/1.png", "prompt": "\ud83d What?", "extra": [1]},
        {"image": "images/none.png"},
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    rows = generate(
        tmp_path / "out.jsonl", "--jsonl", str(tmp_path / "in.jsonl"), "--prompt", "What is in this picture?"
    )
    assert [row["id"] for row in rows] == ["7", "images/1.png", "images/1.png#2", "images/none.png"]
    assert rows[0]["answer"] == "There are three objects."
    assert "blue heart" in rows[1]["answer"]
    assert rows[3]["error"].endswith("none.png does not exist")


def test_a_task_stands_in_front_of_each_question(
    folder: Path, tmp_path: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Template, "tasks", TASKS)
    rows = generate(tmp_path / "out.jsonl", "--images", str(folder), "--prompt", "the circle", "--task", "refer")
    assert {row["prompt"] for row in rows} == {"[refer] the circle"}


def test_failed_rows_are_named_and_asked_again_when_told(
    folder: Path, tmp_path: Path, asked: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_text('{"image": "late.png"}\n{"image": "never.png"}\n')
    arguments = ["--jsonl", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl")]
    assert main(arguments) == 1
    printed = capsys.readouterr().out
    assert "2 rows: 0 answered, 0 already done, 2 failed" in printed
    assert f"the first that failed: image {tmp_path / 'late.png'} does not exist" in printed
    drawn_scenes()[0].save(tmp_path / "late.png")
    asked.clear()
    assert main(arguments) == 1 and asked == []
    assert main([*arguments, "--retry-errors"]) == 0
    assert "2 rows: 1 answered, 0 already done, 1 failed" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert "answer" in rows[0] and rows[1]["error"].endswith("never.png does not exist")


class TestResume:
    def test_only_what_is_missing_is_asked(self, folder: Path, tmp_path: Path, asked: list[int]) -> None:
        out = tmp_path / "out.jsonl"
        complete = generate(out, "--images", str(folder))
        asked.clear()
        assert generate(out, "--images", str(folder)) == complete
        assert asked == []
        lines = out.read_text().splitlines(keepends=True)
        out.write_text("".join(lines[:4]) + lines[5][:30])
        assert generate(out, "--images", str(folder)) == complete
        assert asked == [3, 1, 1, 1]  # all three, then one by one because of the broken one

    def test_parts_that_a_killed_run_left(self, folder: Path, tmp_path: Path, asked: list[int]) -> None:
        complete = generate(tmp_path / "complete.jsonl", "--images", str(folder))
        out = tmp_path / "out.jsonl"
        lines = [json.dumps(row) for row in complete]
        (tmp_path / "out.jsonl.part0").write_text("\n".join(lines[:2]) + "\n")
        (tmp_path / "out.jsonl.part1").write_text(lines[3] + "\n" + lines[5][:-9])
        asked.clear()
        assert generate(out, "--images", str(folder)) == complete
        assert asked[0] == 4
        assert not list(tmp_path.glob("out.jsonl.part*"))

    def test_other_settings_and_other_questions_are_refused(
        self, folder: Path, tmp_path: Path, asked: list[int], capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out.jsonl"
        before = generate(out, "--images", str(folder))
        changes = {
            "was begun with other settings": ["--options", "evaluation.generation.num_beams=2"],
            "holds a row of other questions": ["--prompt", "What?"],
        }
        for message, change in changes.items():
            with pytest.raises(SystemExit) as caught:
                generate(out, "--images", str(folder), *change)
            assert caught.value.code == 2
            assert message in capsys.readouterr().err
        assert generate(out, "--images", str(folder)) == before

    def test_a_damaged_line_in_the_middle_is_named(self, tmp_path: Path) -> None:
        item = Question("a", "a.png", "What?")
        (tmp_path / "out.jsonl").write_text('{"id": \n' + json.dumps(row_of(item, answer="x")) + "\n")
        with pytest.raises(DataError, match=r"out\.jsonl, line 1: broken JSON"):
            AnswerFile(tmp_path / "out.jsonl", [item]).merge_parts()

    @pytest.mark.parametrize("line", ["[1]", '{"answer": "x"}', '{"id": ["a"]}'])
    def test_another_jsonl_file_is_not_overwritten(self, tmp_path: Path, line: str) -> None:
        (tmp_path / "out.jsonl").write_text(line + "\n")
        with pytest.raises(DataError, match=r"out\.jsonl, line 1: no 'id'; this is not a file of answers"):
            AnswerFile(tmp_path / "out.jsonl", [Question("a", "a.png", "What?")]).merge_parts()
        assert (tmp_path / "out.jsonl").read_text() == line + "\n"

    def test_a_name_with_wildcards_loses_no_work(self, folder: Path, tmp_path: Path, asked: list[int]) -> None:
        complete = generate(tmp_path / "complete.jsonl", "--images", str(folder))
        out = tmp_path / "answers[1].jsonl"
        (tmp_path / "answers[1].jsonl.part0").write_text("".join(json.dumps(row) + "\n" for row in complete[:5]))
        (tmp_path / "answers1.jsonl.part0").write_text("another run's\n")
        asked.clear()
        assert generate(out, "--images", str(folder)) == complete
        assert asked == [2]
        assert not (tmp_path / "answers[1].jsonl.part0").exists()
        assert (tmp_path / "answers1.jsonl.part0").exists()

    def test_a_name_with_wildcards_removes_its_own_temporary_files(self, tmp_path: Path) -> None:
        own, other = tmp_path / ".answers[1].jsonl.x1y2.tmp", tmp_path / ".answers1.jsonl.x1y2.tmp"
        for file in (own, other):
            file.touch()
        with ExitStack() as held:
            AnswerFile(tmp_path / "answers[1].jsonl", []).begin({}, held)
        assert not own.exists() and other.exists()

    def test_text_that_utf8_cannot_encode_is_written_and_recognised(
        self, folder: Path, tmp_path: Path, asked: list[int]
    ) -> None:
        row = '{"image": "images/\\ud83d.png", "id": "\\ud83d", "question": "\\ud83d"}\n'
        (tmp_path / "in.jsonl").write_text(row)
        for _ in range(2):
            (written,) = generate(tmp_path / "out.jsonl", "--jsonl", str(tmp_path / "in.jsonl"))
            assert written["id"] == "\ufffd" and "error" in written
        assert len(asked) == 1


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda path: questions_of_files([str(path / "none")], "?"), "none does not exist"),
        (lambda path: questions_of_files([str(path)], "?"), "holds no image"),
        (lambda path: questions_of_jsonl(path / "none", "?"), "none does not exist"),
        (lambda path: questions_of_jsonl(_file(path, "{"), "?"), "line 1: broken JSON"),
        (lambda path: questions_of_jsonl(_file(path, "\n[1]"), "?"), "line 2: an object is expected"),
        (lambda path: questions_of_jsonl(_file(path, '{"id": "a"}'), "?"), "line 1: no 'image'"),
        (lambda path: questions_of_jsonl(_file(path, '{"image": ["a"]}'), "?"), r"'image' is \[.a.\], should be text"),
        (
            lambda path: questions_of_jsonl(_file(path, '{"image": "a", "id": 1}\n' * 2), "?"),
            "line 2: the id '1' occurs twice",
        ),
        (lambda path: questions_of_jsonl(_file(path, ""), "?"), "nothing to answer"),
        (lambda path: questions_of_jsonl(_file(path, b"\xff\xfe"), "?"), "line 1: not UTF-8"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, read: Callable[[Path], Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path)


def _file(folder: Path, content: str | bytes) -> Path:
    path = folder / "in.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_process_takes_the_number_format_that_the_first_chose(
    folder: Path, tmp_path: Path, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_on_main, given = Processes.run_on_main, []

    def answer_of_first(processes: Processes, make: Callable[[], Any]) -> Any:
        answer = run_on_main(processes, make)
        return replace(answer, frozen=torch.bfloat16) if isinstance(answer, ChosenPrecision) else answer

    monkeypatch.setattr(Processes, "run_on_main", answer_of_first)
    monkeypatch.setattr(api, "from_config", lambda *_, precision, **__: given.append(precision) or tiny)
    generate(tmp_path / "out.jsonl", "--images", str(folder / "0.png"))
    assert given == [torch.bfloat16]


@pytest.mark.distributed
def test_two_processes_write_what_one_writes(folder: Path, tmp_path: Path, asked: list[int]) -> None:
    complete = generate(tmp_path / "one.jsonl", "--images", str(folder))
    out = tmp_path / "two.jsonl"
    command = ["-m", "minigpt4.generate", "--images", str(folder), "--out", str(out), "--batch-size", "2"]
    done = launch(*command, "--options", "run.device=cpu", ranks=2, cwd=PROJECT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [json.loads(line) for line in out.read_text().splitlines()] == complete
    assert "7 rows: 6 answered, 0 already done, 1 failed" in done.stdout


class TestWhereNothingCanBeWritten:
    def test_a_folder_of_that_name(self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "out.jsonl").mkdir()
        with pytest.raises(SystemExit):
            main(["--images", str(folder), "--out", str(tmp_path / "out.jsonl")])
        error = capsys.readouterr().err.splitlines()[-1]
        assert error == f"error: {tmp_path / 'out.jsonl'} cannot be written: it is a folder; name a file"

    @pytest.mark.parametrize("out", ["file/out.jsonl", "x" * 300])
    def test_a_path_that_cannot_be(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str
    ) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(SystemExit):
            main(["--images", str(folder), "--out", str(tmp_path / out)])
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: {tmp_path / out} cannot be written: ")

    def test_a_file_that_another_command_writes_is_left_alone(self, tmp_path: Path) -> None:
        with ExitStack() as first, ExitStack() as second:
            AnswerFile(tmp_path / "out.jsonl", []).begin({}, first)
            with pytest.raises(DataError, match=rf"process {os.getpid()} on .* is writing to .*out\.jsonl; wait until"):
                AnswerFile(tmp_path / "out.jsonl", []).begin({}, second)
        with ExitStack() as held:
            AnswerFile(tmp_path / "out.jsonl", []).begin({}, held)
        assert not (tmp_path / "out.jsonl.lock").exists()

    def test_a_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(path: Path, text: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("minigpt4.generate.write_text", full)
        file = AnswerFile(tmp_path / "out.jsonl", [])
        with pytest.raises(DataError, match=r"out\.jsonl cannot be written: No space left"):
            file.begin({}, ExitStack())
        with pytest.raises(DataError, match=r"nowhere/out\.jsonl\.part0 cannot be written"):
            AnswerFile(tmp_path / "nowhere" / "out.jsonl", []).append(0, [{"id": "a"}])


@pytest.mark.parametrize("row", ["[" * 5000, '{"image": ' + "9" * 5000 + "}", '{"image": "a", "image": "b"}', "\x00"])
def test_rows_that_cannot_be_parsed_are_named(tmp_path: Path, row: str) -> None:
    with pytest.raises(DataError, match=r"in\.jsonl, line 2: "):
        questions_of_jsonl(_file(tmp_path, f'{{"image": "a.png"}}\n{row}\n'), "?")


def test_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        questions_of_files(["x" * 5000], "?")

"""The terminal chat, on the tiny model that ships with the package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image, ImageDraw

from minigpt4.api import Chat, LoadedModel
from minigpt4.chat import main
from minigpt4.common.boxes import TASKS
from minigpt4.conversation.template import Template
from minigpt4.models.toy import NOTE

DESCRIBE = "Describe this image in detail."


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": {"model_type": "tiny"}, "run": {"device": "cpu"}}))
    image = Image.new("RGB", (64, 64), (120, 120, 120))
    ImageDraw.Draw(image).ellipse((18, 18, 46, 46), fill=(220, 30, 30))
    image.save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def chat(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    main(["--cfg-path", "config.yaml", "--image", "image.png", *arguments])
    return capsys.readouterr().out.splitlines()


def keyboard(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Type these lines, then the end of input."""
    typed = iter(lines)

    def read(prompt: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)


def test_questions_from_the_command_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = chat(capsys, "--ask", "Describe this image in detail.", "How many objects are there?")
    assert len(lines) == 2
    assert all(lines)
    assert "###" not in "".join(lines)


def test_a_task_stands_in_front_of_each_question(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def stream(self: Chat, question: str, *_: Any, **__: Any) -> Iterator[str]:
        seen.append(question)
        return iter(["a box"])

    monkeypatch.setattr(Chat, "stream", stream)
    with pytest.raises(SystemExit):
        chat(capsys, "--task", "refer", "--ask", "the circle")
    assert "--task refer: only MiniGPT-v2 knows tasks" in capsys.readouterr().err and not seen
    monkeypatch.setattr(Template, "tasks", TASKS)
    chat(capsys, "--task", "refer", "--ask", "the circle", "the square")
    keyboard(monkeypatch, "the star")
    chat(capsys, "--task", "vqa")
    assert seen == ["[refer] the circle", "[refer] the square", "[vqa] the star"]


def test_questions_from_the_keyboard(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keyboard(monkeypatch, "", DESCRIBE)
    assert chat(capsys) == chat(capsys, "--ask", DESCRIBE)


def test_it_greets_and_answers_commands_itself(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keyboard(monkeypatch, "/help", "/what?", DESCRIBE, "/restart", DESCRIBE, "word " * 600, "/quit", "never asked")
    main(["--cfg-path", "config.yaml", "--image", "image.png"])
    said = capsys.readouterr()
    first, second = said.out.splitlines()
    assert first == second and first, "the second question was not asked again about the image"
    assert f"minigpt4 tiny on cpu in float32\n{NOTE}\n" in said.err and "/quit or Ctrl-D leaves" in said.err
    assert said.err.count("show this list") == 2 and "there is no command /what?" in said.err
    assert "error: question: the prompt has" in said.err


def test_ctrl_c_ends_an_answer_early(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keyboard(monkeypatch, DESCRIBE, "How many objects are there?")
    complete = LoadedModel.answer_ids

    def interrupted(self: LoadedModel, *given: Any) -> Iterator[Any]:
        steps = complete(self, *given)
        yield next(steps)
        monkeypatch.setattr(LoadedModel, "answer_ids", complete)
        raise KeyboardInterrupt

    monkeypatch.setattr(LoadedModel, "answer_ids", interrupted)
    first, second = chat(capsys)
    assert len(first.split()) == 1 and len(second.split()) > 1


def test_a_missing_image_is_one_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--cfg-path", "config.yaml", "--image", "none.png", "--ask", "What is it?"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: image none.png does not exist\n"


def test_without_a_configuration_the_embedded_model_answers(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--image", "image.png", "--ask", "What is in this picture?"])
    assert "red circle" in capsys.readouterr().out

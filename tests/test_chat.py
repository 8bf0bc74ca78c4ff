"""The terminal chat, on the tiny model that ships with the package."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from PIL import Image, ImageDraw

from minigpt4.chat import main


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


def test_questions_from_the_command_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = chat(capsys, "--ask", "Describe this image in detail.", "How many objects are there?")
    assert len(lines) == 2
    assert all(lines)
    assert "###" not in "".join(lines)


def test_questions_from_the_keyboard(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = iter(["", "Describe this image in detail."])

    def keyboard(prompt: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", keyboard)
    assert chat(capsys) == chat(capsys, "--ask", "Describe this image in detail.")


def test_a_missing_image_is_one_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--cfg-path", "config.yaml", "--image", "none.png", "--ask", "What is it?"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: image none.png does not exist\n"


def test_without_a_configuration_the_embedded_model_answers(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--image", "image.png", "--ask", "What is in this picture?"])
    assert "red circle" in capsys.readouterr().out

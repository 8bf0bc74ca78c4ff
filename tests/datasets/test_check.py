from __future__ import annotations

import json
from pathlib import Path

import pytest

from minigpt4.datasets.check import main
from tests.datasets.conftest import write_jsonl

ROWS = 30


@pytest.fixture
def card(tmp_path: Path, images: Path) -> Path:
    rows = [
        {"image": f"{number % 20}.png", "answer": f"picture {number}", "split": "val" if number == 3 else None}
        for number in range(ROWS)
    ]
    path = write_jsonl(tmp_path / "mine.jsonl", rows)
    card = tmp_path / "mine.yaml"
    card.write_text(f"reader: jsonl\nannotations: {path}\nimages: {images}\n")
    return card


def spoil(tmp_path: Path, numbers: range) -> None:
    """Rows that hold no answer."""
    path = tmp_path / "mine.jsonl"
    lines = path.read_text().splitlines()
    for number in numbers:
        lines[number] = json.dumps({"image": f"{number}.png"})
    path.write_text("\n".join(lines))


def test_a_good_data_set(card: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(card)]) == 0
    out = capsys.readouterr().out
    assert "mine: 30 well-formed rows (train 29, val 1)" in out
    assert "answers: 30, 2 to 2 words long" in out
    assert "example: 0.png | answers: picture 0" in out
    assert "bad rows: none" in out
    assert "warning: 1 pictures are in more than one split, such as 3.png" in out


def test_bad_rows_and_pictures_are_named(
    card: Path, tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(tmp_path, range(2, 4))
    (images / "7.png").unlink()
    (images / "8.png").write_bytes(b"broken")
    assert main([str(card)]) == 1
    out = capsys.readouterr().out
    assert "bad rows: 4" in out
    assert "mine.jsonl, line 3: no 'answer'" in out
    assert "mine.jsonl, line 8: image" in out and "7.png does not exist" in out
    assert "mine.jsonl, line 9: image" in out and "8.png cannot be read" in out
    assert main([str(card), "--no-images"]) == 1
    assert "bad rows: 2" in capsys.readouterr().out


def test_the_first_twenty_are_shown_unless_all_are_asked_for(
    card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(tmp_path, range(25))
    assert main([str(card), "--no-images"]) == 1
    out = capsys.readouterr().out
    assert out.count("no 'answer'") == 20 and "... and 5 more; --all shows them" in out
    assert main([str(card), "--no-images", "--all"]) == 1
    assert capsys.readouterr().out.count("no 'answer'") == 25


def test_every_dataset_of_a_run(card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run.yaml"
    run.write_text(f"datasets: {{a: {{card: {card}}}, b: {{card: {card}, val_fraction: 0.5}}}}")
    assert main(["--cfg-path", str(run)]) == 0
    out = capsys.readouterr().out
    assert "a: 30 well-formed rows" in out and "b: 30 well-formed rows" in out


def test_options_reach_the_card(card: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(card), "--no-images", "--options", "datasets.mine.val_fraction=0.5"]) == 0
    assert "train 29" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["flickr30"], "did you mean 'flickr30k'?"),
        (["no.yaml"], "configuration file no.yaml does not exist"),
        (["flickr30k", "--options", "paths.data_root=/nowhere"], "MINIGPT4_DATA"),
    ],
)
def test_a_users_mistake_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code not in (0, 1)
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1


def test_a_card_or_a_run_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([])
    assert "give a CARD or --cfg-path" in capsys.readouterr().err

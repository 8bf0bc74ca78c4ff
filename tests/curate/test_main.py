"""The curation command: its steps, and what it says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from minigpt4.common.files import PROJECT
from minigpt4.curate.__main__ import main
from minigpt4.curate.ledger import Ledger
from tests.curate.conftest import TEXT, described, fill, refined, save_images
from tests.runners.project import logging_restored


def curate(step: str, folder: Path, *more: str) -> None:
    options = [f"curation.dir={folder}", f"curation.export_dir={folder}/export", "curation.filter.min_words=4"]
    with logging_restored():
        main([step, "--cfg-path", str(PROJECT / "train_configs/scenes_curation.yaml"), *more, "--options", *options])


def test_each_step_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_images(tmp_path / "image", 3)
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        fill(ledger, 3, lambda number: described(number, TEXT), lambda number: refined(number, TEXT))
        ledger.append([refined(2, "A circle.")])
        curate("status", tmp_path)  # while another command writes
    assert capsys.readouterr().out.splitlines() == [
        "status: 3 drawn = 0 accepted + 0 rejected + 3 pending (3 wait for filter)"
    ]
    curate("filter", tmp_path)
    curate("review", tmp_path, "--accept-all")
    curate("export", tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[::2] == [
        "filter: kept 2, too_short 1",
        "review: accepted 2",
        f"export: wrote {tmp_path}/export: 2 images with captions",
    ]
    assert lines[-1] == "export: 3 drawn = 2 accepted + 1 rejected + 0 pending (1 rejected by rule too_short)"


def test_only_the_page_needs_a_web_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "minigpt4.curate.review_server", raising=False)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    curate("review", tmp_path, "--accept-all")
    with pytest.raises(SystemExit):
        curate("review", tmp_path)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "error: the package fastapi is missing; run: pip install -c constraints.txt -e '.[serve]'"


def test_an_error_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Ledger(tmp_path / "ledger.jsonl"), pytest.raises(SystemExit):
        curate("export", tmp_path)
    assert f"error: ledger {tmp_path}/ledger.jsonl is in use by another curation command" in capsys.readouterr().err

"""What img2dataset is told."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from dataset.download_shards import img2dataset_arguments, main, parse_args


@pytest.fixture
def table(tmp_path: Path) -> str:
    path = tmp_path / "ccs.tsv"
    path.write_text("caption\turl\n")
    return str(path)


def test_the_arguments() -> None:
    args = parse_args(["ccs.tsv", "--out", "shards", "--distributor", "ray", "--image-size", "256"])
    assert img2dataset_arguments(args) == [
        "--url_list=ccs.tsv",
        "--input_format=tsv",
        "--url_col=url",
        "--caption_col=caption",
        "--output_format=webdataset",
        "--output_folder=shards",
        "--processes_count=16",
        "--thread_count=128",
        "--image_size=256",
        "--resize_mode=keep_ratio",
        "--resize_only_if_bigger=True",
        "--number_sample_per_shard=10000",
        "--retries=1",
        "--incremental_mode=incremental",
        "--distributor=ray",
        "--enable_wandb=False",
    ]


def test_the_command_is_run_and_its_status_returned(
    table: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], check: bool) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=len(commands) - 1)

    monkeypatch.setattr(shutil, "which", lambda name: f"/tools/{name}")
    monkeypatch.setattr(subprocess, "run", run)
    arguments = [table, "--out", "shards", "--threads", "4"]
    assert main(arguments) == 0 and "datasets.NAME.shards='shards/*.tar'" in capsys.readouterr().out
    assert main(arguments) == 1 and capsys.readouterr().out == ""
    assert commands[0] == ["/tools/img2dataset", *img2dataset_arguments(parse_args(arguments))]
    assert "--thread_count=4" in commands[0]


def test_printing_needs_nothing(table: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([table, "--out", "a folder", "--print"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"img2dataset --url_list={table} ") and "'--output_folder=a folder'" in out


def test_mistakes_say_what_to_do(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (tmp_path / "ccs.json").write_text("[]")
    for wrong in (table, str(tmp_path / "no.tsv"), str(tmp_path / "ccs.json")):
        with pytest.raises(SystemExit):
            main([wrong, "--out", "shards"])
    absent, missing, kind = capsys.readouterr().err.splitlines()
    assert "there is no command img2dataset; pipx install img2dataset" in absent
    assert "no.tsv does not exist; dataset/convert_captions.py makes it" in missing
    assert "ends in .tsv or .csv" in kind

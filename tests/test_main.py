"""`minigpt4 COMMAND`: the list, the dispatch, and that what needs no torch does not import it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from minigpt4.__main__ import COMMANDS, main
from minigpt4.common.cli import EXTRAS
from minigpt4.common.files import PROJECT
from tests.test_environment import PROJECT as PYPROJECT
from tests.test_environment import package_name

TRIES = """
import contextlib, io, json, sys
from minigpt4.__main__ import main
outcomes = []
for arguments in json.loads(sys.argv[1]):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            status = main(arguments)
        except SystemExit as end:
            status = end.code or 0
    outcomes.append((status, printed.getvalue(), [name for name in ("torch", "transformers") if name in sys.modules]))
print(json.dumps(outcomes))
"""
"""Runs `minigpt4 ARGUMENTS` for each list of arguments, in one process."""


def test_the_list_names_every_command_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, command in COMMANDS.items():
        assert [line for line in lines if line.startswith(f"  {name} ") and command.what in line]
    assert all(len(line) <= 100 for line in lines)


def test_an_unknown_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "error: minigpt4: unknown command 'trian'; did you mean 'train'?\n"
    assert main([]) == 2


def test_the_installed_command_is_this_one() -> None:
    assert PYPROJECT["scripts"] == {"minigpt4": "minigpt4.__main__:main"}
    assert PYPROJECT["name"] != "minigpt4"  # somebody else's, on the public index


def test_packages_that_may_be_missing_are_in_the_extra_that_the_message_names() -> None:
    for module, extra in EXTRAS.items():
        assert module.replace("_", "-") in {package_name(item) for item in PYPROJECT["optional-dependencies"][extra]}


def test_help_and_mistakes_do_not_wait_for_torch(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    (tmp_path / "rows.jsonl").write_text('{"image": "a.jpg", "answer": "a"}\n')
    (tmp_path / "card.yaml").write_text("reader: jsonl\nannotations: rows.jsonl\n")
    run = {
        "model": {"arch": "minigpt4", "model_type": "tiny"},
        "datasets": {"mine": {"card": "card.yaml"}},
        "evaluation": {"output_dir": "rows.jsonl/out"},
    }
    for name, section in (
        ("no_split", {"train_splits": ["train"], "valid_splits": ["val"]}),
        ("no_folder", {"valid_splits": [], "run_dir": "rows.jsonl"}),
        ("used", {"valid_splits": [], "run_dir": "used"}),
        ("no_cache", {}),
    ):
        (tmp_path / f"{name}.yaml").write_text(json.dumps(run | {"run": section}))
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "checkpoint_0.pth").touch()
    cached = ["--options", "datasets.mine.feature_cache=cache"]
    (tmp_path / "broken.yaml").write_text("run: [\n")
    (tmp_path / "unknown.yaml").write_text("run: {max_epochs: 3}\n")
    more = {
        "curate": ["describe"],
        "generate": ["--images", ".", "--out", "answers.jsonl"],
        "chat": ["--image", "a.png"],
    }
    tries = [([name, "--help"], "usage: minigpt4 " + name) for name in COMMANDS]
    for name in ("train", "eval", "curate", "demo", "generate", "chat"):
        for file, message in (
            ("none.yaml", "none.yaml does not exist"),
            ("broken.yaml", "broken.yaml: not readable as YAML"),
            ("unknown.yaml", "unknown.yaml: run.max_epochs: unknown key; did you mean 'max_epoch'?"),
        ):
            tries.append(([name, *more.get(name, []), "--cfg-path", file], message))
    tries += [
        (["check", "card.yaml"], "1 well-formed rows"),
        (["check", "none"], "no card 'none'"),
        (["check", "--cfg-path", "unknown.yaml"], "unknown key"),
        (["prepare"], "2 files and folders are missing"),
        (["train", "--cfg-path", "no_split.yaml"], "there is no split 'val'; the annotations have train (1)"),
        (["train", "--cfg-path", "no_split.yaml", "--dry-run"], "there is no split 'val'"),
        (["plan", "--cfg-path", "no_split.yaml"], "there is no split 'val'"),
        (["precompute", "--cfg-path", "no_split.yaml", *cached], "there is no split 'val'"),
        (["precompute", "--cfg-path", "no_cache.yaml"], "no dataset has a feature_cache"),
        (["train", "--cfg-path", "no_folder.yaml"], "run.run_dir: the folder rows.jsonl cannot be made or written to"),
        (["train", "--cfg-path", "used.yaml"], "run.run_dir: used holds the checkpoints of an earlier run"),
        (["eval", "--cfg-path", "used.yaml", "--split", "tst", "--out", "o"], "there is no split 'tst'"),
        (["eval", "--cfg-path", "used.yaml"], "rows.jsonl/out cannot be made or written to: "),
        (["eval", "--cfg-path", "used.yaml", "--dataset", "his"], "evaluation.dataset: 'his' is not one of"),
        (["chat", "--image", "none.png"], "image none.png does not exist"),
        (["chat", "--image", "card.yml"], "; did you mean 'card.yaml'?"),
        (["generate", "--images", "card.yml", "--out", "a.jsonl"], "; did you mean 'card.yaml'?"),
        (["generate", "--jsonl", "card.yml", "--out", "a.jsonl"], "; did you mean 'card.yaml'?"),
    ]
    for (arguments, message), (status, printed, imported) in zip(
        tries, outcomes(tmp_path, [arguments for arguments, _ in tries]), strict=True
    ):
        assert message in printed, arguments
        assert status == (0 if "--help" in arguments or "card.yaml" in arguments else 2), arguments
        assert not imported, arguments
        assert "Traceback" not in printed


def outcomes(folder: Path, tries: list[list[str]]) -> list[tuple[int, str, list[str]]]:
    """(exit status, what was printed, heavy modules imported until then) of each command line, run in a folder."""
    done = subprocess.run(
        [sys.executable, "-c", TRIES, json.dumps(tries)],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env={"PATH": "", "PYTHONPATH": str(PROJECT), "COLUMNS": "120"},
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("command", [["train.py"], ["demo.py"], ["eval_scripts/eval_flickr30k.py"], ["-m", "minigpt4"]])
def test_a_clone_that_is_not_installed_says_what_to_run(command: list[str]) -> None:
    done = subprocess.run(  # -S: without site-packages
        [sys.executable, "-S", *command, "--help"], capture_output=True, text=True, cwd=PROJECT, env={"PATH": ""}
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "run `make install`, then `source .venv/bin/activate`" in done.stderr


def test_an_old_python_is_named() -> None:
    code = "import sys; sys.version_info = (3, 9, 18); sys.version = '3.9.18 (main)'; import minigpt4"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == 1
    assert (
        done.stderr.startswith("error: Python 3.10 or newer is needed, and ") and "is 3.9.18; run `make" in done.stderr
    )

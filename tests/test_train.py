"""The command line of train.py: what it shows, and that a user's mistake is one clear line."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from tests.runners.project import PARITY_A, REPOSITORY, Project, logging_restored

Run = Callable[..., tuple[int, str, str]]


class Payload:
    """Runs code when unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("ran",))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project.make(tmp_path_factory.mktemp("train"))


@pytest.fixture
def run(project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """train.py in this process: (exit status, stdout, stderr)."""
    monkeypatch.syspath_prepend(str(REPOSITORY))
    monkeypatch.chdir(project.folder)

    def start(*options: str, cfg: str = "config.yaml", arguments: tuple[str, ...] = ()) -> tuple[int, str, str]:
        chosen = ["--options", *options] if options else []
        monkeypatch.setattr(sys, "argv", ["train.py", "--cfg-path", cfg, *arguments, *chosen])
        status = 0
        with logging_restored():
            try:
                importlib.import_module("train").main()
            except SystemExit as end:
                status = int(end.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return start


def damaged(project: Project, name: str, content: object) -> str:
    torch.save(content, project.folder / name)
    return name


def wider(project: Project) -> str:
    state = {"llama_proj.weight": torch.zeros(5120, 48), "llama_proj.bias": torch.zeros(5120)}
    return damaged(project, "wider.pth", {"model": state})


def truncated(project: Project) -> str:
    content = (PARITY_A / "minigpt4.pth").read_bytes()
    (project.folder / "truncated.pth").write_bytes(content[: len(content) // 2])
    return "truncated.pth"


def without_placeholder(project: Project) -> str:
    (project.folder / "bad_prompts.txt").write_text("Describe it.\n")
    return "bad_prompts.txt"


def broken_rows(project: Project) -> str:
    (project.folder / "broken.jsonl").write_text('{"image": "image_0.png", "answer": "a"}\n{"image": \n')
    return "broken.jsonl"


@pytest.mark.parametrize(
    ("option", "make", "parts"),
    [
        ("run.max_epoc=3", None, ["run.max_epoc", "did you mean 'max_epoch'"]),
        ("run.max_epoch=many", None, ["run.max_epoch", "many"]),
        ("model.llama_model=nowhere", None, ["model.llama_model", "nowhere", "MINIGPT4_WEIGHTS"]),
        ("datasets.shapes.annotations=none.jsonl", None, ["none.jsonl", "MINIGPT4_DATA"]),
        ("run.valid_splits=[dev]", None, ["there is no split 'dev'", "train (24)", "val (7)"]),
        ("run.lr_sched=cosine", None, ["unknown learning-rate schedule 'cosine'", "linear_warmup_cosine_lr"]),
        ("run.task=captioning", None, ["unknown task 'captioning'"]),
        ("run.device=tpu", None, ["run.device: 'tpu' should be auto, cpu or cuda"]),
        ("run.trackers=[tensorbord]", None, ["did you mean 'tensorboard'"]),
        ("model.ckpt=", wider, ["wider.pth", "(5120, 48)", "(64, 48)"]),
        ("model.ckpt=", truncated, ["truncated.pth is truncated"]),
        ("model.ckpt=", lambda p: damaged(p, "code.pth", {"model": Payload()}), ["code.pth", "would run code"]),
        ("model.prompt_path=", without_placeholder, ["bad_prompts.txt, line 1", "<ImageHere>"]),
        ("datasets.shapes.annotations=", broken_rows, ["broken.jsonl, line 2", "broken JSON"]),
        ("run.resume_ckpt_path=", truncated, ["truncated.pth is truncated"]),
    ],
)
def test_a_mistake_is_one_clear_line(
    run: Run, project: Project, option: str, make: Callable[[Project], str] | None, parts: list[str]
) -> None:
    status, out, err = run(option + (make(project) if make else ""))
    assert status == 2, err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert all(part in errors[0] for part in parts), errors[0]
    assert "Traceback" not in err and "ran" not in out.split()
    assert not (project.folder / "output").exists()


def test_a_missing_file_and_a_mistake_through_the_real_command(project: Project) -> None:
    status, printed = project.train("run.init_rl=1")
    assert status == 2
    assert printed.strip() == "error: --options: run.init_rl: unknown key; did you mean 'init_lr'?"


def test_print_config_names_the_layer_of_each_value(run: Run) -> None:
    status, out, _ = run("run.seed=7", arguments=("--print-config",))
    assert status == 0
    rows = {line.split()[1]: line for line in out.splitlines() if line.startswith("│")}
    assert "--options" in rows["run.seed"] and "7" in rows["run.seed"]
    assert "config.yaml" in rows["run.warmup_steps"]
    assert "schema default" in rows["run.beta2"]
    assert "card.yaml" in rows["model.num_query_token"]


def test_the_published_recipe_builds_with_small_weights(
    run: Run, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shipped file for Flickr30k, its big weights replaced by the fixture's."""
    rows = [json.loads(line) for line in (project.folder / "data.jsonl").read_text().splitlines()]
    records = [
        {
            "image_id": row["image"],
            "filename": row["image"],
            "grounded_caption": row["answer"],
            "captions": [row["answer"]],
            "split": row["split"],
        }
        for row in rows
    ]
    (project.folder / "flickr30k.json").write_text(json.dumps(records))
    card = yaml.safe_load((project.folder / "card.yaml").read_text())
    small = {key: value for key, value in card.items() if key not in ("prompt_path", "prompt_template", "end_sym")}
    small["vit_args"] = json.dumps(card["vit_args"])
    small["q_former_args"] = json.dumps(card["q_former_args"])
    options = [
        f"model.{key}={value}" for key, value in small.items() if value not in (None, "") and key != "max_txt_len"
    ]
    size = card["image_size"]
    options += [f"datasets.flickr30k.vis_processor.{phase}.image_size={size}" for phase in ("train", "eval")]
    options += ["datasets.flickr30k.annotations=flickr30k.json", "datasets.flickr30k.images=.", "run.device=cpu"]
    status, out, err = run(
        *options, cfg=str(REPOSITORY / "train_configs" / "minigpt4_flickr_finetune.yaml"), arguments=("--dry-run",)
    )
    assert status == 0, err
    assert "2,500" in out and "5,000 (208.33 x the training data)" in out
    assert "1e-06 at step 0, 2.99e-05 at 199, 1e-05 at the end" in out
    assert not Path("output").exists()

"""The command line of train.py: what it shows."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.runners.project import REPOSITORY, Project, logging_restored

Run = Callable[..., tuple[int, str, str]]


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

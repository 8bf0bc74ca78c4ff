"""What a run writes, and what a dry run shows."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open

from tests.runners.project import LOG_LINE, Project, read_epochs, tensorboard_scalars

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def folder(project: Project) -> Path:
    """A run of two epochs of six steps, logged every fourth."""
    return project.train_here("run.run_dir=two_epochs", "run.log_freq=4", "run.trackers=[tensorboard]")


def test_lines_are_at_log_points_and_at_the_end_of_an_epoch(folder: Path) -> None:
    log = (folder / "train.log").read_text()
    matches = list(LOG_LINE.finditer(log))
    assert [(int(m["epoch"]), int(m["iteration"])) for m in matches] == [(e, i) for e in (0, 1) for i in (0, 4, 5)]
    assert float(matches[0]["lr"]) == 1e-6
    assert "precision: frozen weights in float32" in log
    assert "trainable: llama_proj.weight [64, 48] = 3,072" in log
    assert "no better than guessing among 800 tokens" in log  # the fixture's language model is random


def test_log_txt_holds_an_object_per_epoch(folder: Path) -> None:
    lines = read_epochs(folder)
    assert [line["epoch"] for line in lines] == [0, 1]
    assert [line["step"] for line in lines] == [6, 12]
    assert [line["samples_seen"] for line in lines] == [24, 48]
    assert all(0 < line["train_lr"] < 1e-3 and line["train_loss"] > 0 and line["val_loss"] > 0 for line in lines)
    assert all(line["skipped_images"] == 0 and line["seconds"] > 0 for line in lines)


def test_speed_is_logged_beside_each_line_and_in_log_txt(folder: Path) -> None:
    log = (folder / "train.log").read_text()
    speed = r"Speed: samples/s: (\S+)  tokens/s: (\d+)  padded tokens/s: (\d+)  mfu: (\d\.\d{3})"
    found = re.findall(speed, log)
    assert len(found) == len(LOG_LINE.findall(log))
    assert all(float(samples) > 0 and int(tokens) == int(padded) > 0 for samples, tokens, padded, _ in found)
    for line in read_epochs(folder):
        assert line["samples_per_second"] * line["seconds"] == pytest.approx(24, rel=0.05)
        assert 30 * line["samples_per_second"] < line["tokens_per_second"] < 60 * line["samples_per_second"]
        assert line["padded_tokens_per_second"] == line["tokens_per_second"]
        assert line["mfu"] > 0


def test_checkpoints_have_the_published_layout(folder: Path) -> None:
    content = torch.load(folder / "checkpoint_1.pth", weights_only=True)
    assert set(content["model"]) == {"llama_proj.weight", "llama_proj.bias"}
    assert (content["epoch"], content["step"], content["scaler"]) == (1, 12, None)
    assert content["config"]["run"]["run_dir"] == "two_epochs"
    assert len(content["optimizer"]["state"]) == 2
    with safe_open(folder / "checkpoint_1.safetensors", "pt") as file:
        metadata = file.metadata()
        assert torch.equal(file.get_tensor("llama_proj.weight"), content["model"]["llama_proj.weight"])
    assert metadata["prompt_template"] == "###Human: {} ###Assistant: "
    assert (metadata["step"], metadata["epoch"]) == ("12", "1")
    assert float(metadata["val_loss"]) == read_epochs(folder)[1]["val_loss"]
    assert metadata["base.llama_model"]


def test_the_folder_holds_the_resolved_configuration(folder: Path) -> None:
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert written["run"]["beta2"] == 0.999
    assert written["model"]["num_query_token"] == 8


def test_tensorboard_has_the_curves(folder: Path) -> None:
    assert [step for step, _ in tensorboard_scalars(folder, "epoch/val_loss")] == [6, 12]
    assert [step for step, _ in tensorboard_scalars(folder, "train/lr")] == [0, 4, 5, 6, 10, 11]


def test_dry_run_shows_everything_and_writes_nothing(
    train_here: Train, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    train_here("run.run_dir=dry", "run.accum_grad_iters=2", dry_run=True)
    shown = capsys.readouterr().out
    assert not (project.folder / "dry").exists()
    assert "llama_proj" in shown and "3,136" in shown and "524,901" in shown
    assert "###Human: <Img><ImageHere>*8</Img>" in shown
    assert "[[" in shown and "###]]" in shown
    assert "8 (4 per micro-batch x 2 accumulated x 1 processes)" in shown
    assert "1e-06 at step 0" in shown

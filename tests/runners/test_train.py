"""What a run writes, and what a dry run shows."""

from __future__ import annotations

import re
import shlex
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
    assert [(int(m["epoch"]), int(m["step"])) for m in matches] == [(e, i) for e in (0, 1) for i in (1, 4, 6)]
    assert float(matches[0]["lr"]) == 1e-6
    assert [match["eta"] == "?" for match in matches] == [True, *[False] * 5]  # the first step is no measure
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


def test_speed_is_logged_for_each_epoch_and_in_log_txt(folder: Path) -> None:
    log = (folder / "train.log").read_text()
    ends = r"epoch (\d): train loss ([\d.]+), val loss ([\d.]+).*; (\S+) samples/s, .*; ([\d.]+) GiB at most"
    for found, line in zip(re.findall(ends, log), read_epochs(folder), strict=True):
        losses, (samples, memory) = [float(text) for text in found[1:3]], (float(text) for text in found[3:])
        assert (int(found[0]), losses) == (line["epoch"], [round(line[key], 4) for key in ("train_loss", "val_loss")])
        assert samples == pytest.approx(line["samples_per_second"], rel=0.01)
        assert memory == pytest.approx(line["max_memory_mib"] / 1024, abs=0.06) and memory > 0.1
    for line in read_epochs(folder):
        assert line["samples_per_second"] * line["seconds"] == pytest.approx(24, rel=0.05)
        assert 30 * line["samples_per_second"] < line["tokens_per_second"] < 60 * line["samples_per_second"]
        assert line["padded_tokens_per_second"] == line["tokens_per_second"]
        assert 0 < line["mfu"] <= 1


def test_a_run_ends_with_commands_that_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minigpt4.common.config import load_config

    done, chat, evaluate = (line.split("] ")[1] for line in (folder / "train.log").read_text().splitlines()[-3:])
    best = min(read_epochs(folder), key=lambda line: line["val_loss"])
    assert re.fullmatch(
        rf"done in [\d.]+ s; best: epoch {best['epoch']}, val loss {best['val_loss']:.4f}; log: .*", done
    )
    assert chat.startswith("chat:     python -m minigpt4 chat --cfg-path two_epochs/config.yaml")
    assert evaluate.startswith("evaluate: python -m minigpt4 eval --cfg-path") and "--split val" in evaluate
    monkeypatch.chdir(folder.parent)
    arguments = shlex.split(chat)
    assert all(Path(path).is_file() for path in (done.split("log: ")[1], *arguments[6:11:2]))
    assert load_config(arguments[6]).config.run.run_dir == "two_epochs"


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
    assert [step for step, _ in tensorboard_scalars(folder, "train/lr")] == [0, 3, 5, 6, 9, 11]


def test_dry_run_shows_everything_and_writes_nothing(
    train_here: Train, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    train_here("run.run_dir=dry", "run.accum_grad_iters=2", dry_run=True)
    shown = capsys.readouterr().out
    assert not (project.folder / "dry").exists()
    assert "llama_proj" in shown and "3,136" in shown and "524,901" in shown
    assert "###Human: <Img><ImageHere>*8</Img>" in shown
    assert "[[" in shown and "###]]" in shown
    assert "8 (4 per micro-batch x 2 accumulated x 1 process)" in shown
    assert "1e-06 at step 0" in shown

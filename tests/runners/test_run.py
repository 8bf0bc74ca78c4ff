"""What a run writes, says and survives."""

from __future__ import annotations

import json
import logging
import re
import traceback
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from torch.utils._python_dispatch import TorchDispatchMode

from minigpt4.common.checkpoint import read_checkpoint
from minigpt4.common.errors import ConfigError
from minigpt4.common.logging import train_line
from minigpt4.common.schema import RunConfig
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.runners import checkpoints as run_folder
from minigpt4.runners.metrics import check_trackers
from minigpt4.runners.optim import check_run
from minigpt4.runners.trainer import EpochRunner, TrainingError, check_first_loss
from tests.runners.project import LOG_LINE, Project, read_epochs

Train = Callable[..., Path]
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique")
"""Operators whose result the host must know before it can go on."""


@pytest.fixture(scope="module")
def folder(project: Project) -> Path:
    """A run of two epochs of six steps, logged every fourth."""
    status, output = project.train("run.run_dir=two_epochs", "run.log_freq=4", "run.trackers=[tensorboard]")
    assert status == 0, output
    (project.folder / "two_epochs" / "printed.txt").write_text(output)
    return project.folder / "two_epochs"


def test_log_line_is_the_published_one() -> None:
    line = train_line(
        epoch=0,
        iteration=50,
        iterations=500,
        eta=279.4,
        lr=8.25e-6,
        loss=2.09662,
        seconds=0.4717,
        data_seconds=0.00002,
        max_mem=18202.4,
    )
    assert line == (
        "Train: data epoch: [0]  [ 50/500]  eta: 0:04:39  lr: 0.000008  loss: 2.0966  time: 0.4717  data: 0.0000  "
        "max mem: 18202"
    )


def test_lines_stand_at_log_points_and_at_the_end_of_an_epoch(folder: Path) -> None:
    printed = (folder / "printed.txt").read_text()
    matches = list(LOG_LINE.finditer(printed))
    assert [(int(m["epoch"]), int(m["iteration"])) for m in matches] == [(e, i) for e in (0, 1) for i in (0, 4, 5)]
    assert float(matches[0]["lr"]) == 1e-6
    assert LOG_LINE.findall((folder / "train.log").read_text()) == LOG_LINE.findall(printed)
    assert "precision: frozen weights in float32" in printed
    assert "trainable: llama_proj.weight [64, 48] = 3,072" in printed
    assert "no better than guessing among 800 tokens" in printed  # the fixture's language model is random


def test_log_txt_holds_an_object_an_epoch(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    assert [line["step"] for line in lines] == [6, 12]
    assert [line["samples_seen"] for line in lines] == [24, 48]
    assert all(0 < line["train_lr"] < 1e-3 and line["train_loss"] > 0 and line["val_loss"] > 0 for line in lines)
    assert all(line["skipped_images"] == 0 and line["seconds"] > 0 for line in lines)


def test_speed_is_logged_beside_each_line_and_in_log_txt(folder: Path) -> None:
    printed = (folder / "printed.txt").read_text()
    speed = r"Speed: samples/s: (\S+)  tokens/s: (\d+)  padded tokens/s: (\d+)  mfu: (\d\.\d{3})"
    found = re.findall(speed, printed)
    assert len(found) == len(LOG_LINE.findall(printed))
    assert all(float(samples) > 0 and int(tokens) == int(padded) > 0 for samples, tokens, padded, _ in found)
    for line in map(json.loads, (folder / "log.txt").read_text().splitlines()):
        assert line["samples_per_second"] * line["seconds"] == pytest.approx(24, rel=0.01)
        assert 30 * line["samples_per_second"] < line["tokens_per_second"] < 60 * line["samples_per_second"]
        assert line["padded_tokens_per_second"] == line["tokens_per_second"]
        assert 0 < line["mfu"] < 2


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
    assert float(metadata["val_loss"]) == read_epochs(folder / "log.txt")[1]["val_loss"]
    assert metadata["base.llama_model"]


def test_the_best_epoch_is_kept(folder: Path) -> None:
    losses = [line["val_loss"] for line in read_epochs(folder / "log.txt")]
    best = read_checkpoint(folder / "checkpoint_best.pth")
    assert best["epoch"] == losses.index(min(losses))
    assert (folder / "checkpoint_best.safetensors").is_file()


def test_the_folder_holds_the_resolved_configuration(folder: Path) -> None:
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert written["run"]["beta2"] == 0.999
    assert written["model"]["num_query_token"] == 8


def test_tensorboard_has_the_curves(folder: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert {"train/loss", "train/lr", "epoch/val_loss"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("epoch/val_loss")] == [6, 12]


def test_run_folders_are_never_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Noon(datetime):
        @classmethod
        def now(cls, tz: object = None) -> Noon:
            return cls(2026, 1, 2, 12, 0, 0)

    monkeypatch.setattr(run_folder, "datetime", Noon)
    run = RunConfig(output_dir=str(tmp_path), job_name="job")
    folders = [run_folder.make_run_folder(run) for _ in range(3)]
    assert [f.relative_to(tmp_path).as_posix() for f in folders] == [
        "job/20260102-120000",
        "job/20260102-120000-2",
        "job/20260102-120000-3",
    ]


def test_a_folder_with_another_runs_checkpoints_is_refused(folder: Path, train_here: Train) -> None:
    with pytest.raises(ConfigError, match=r"holds the checkpoints of another run.*resume_ckpt_path=auto"):
        train_here("run.run_dir=two_epochs")
    with pytest.raises(ConfigError, match=r"leave run\.run_dir out"):
        train_here("run.run_dir=elsewhere", "run.log_freq=4", "run.resume_ckpt_path=two_epochs/checkpoint_0.pth")


def test_float16_trains_with_a_loss_scale_that_is_saved_and_resumed(train_here: Train) -> None:
    folder = train_here("run.run_dir=fp16", "run.amp=fp16", "run.iters_per_epoch=3")
    scaler = read_checkpoint(folder / "checkpoint_0.pth")["scaler"]
    assert scaler["scale"] > 1
    assert "frozen weights in float16, projection in float32, with a loss scale" in (folder / "train.log").read_text()
    train_here("run.amp=fp16", "run.iters_per_epoch=3", "run.max_epoch=3", "run.resume_ckpt_path=fp16/checkpoint_1.pth")
    last = read_checkpoint(folder / "checkpoint_2.pth")
    assert last["step"] == 9
    assert last["scaler"]["_growth_tracker"] == 9  # counted on from the checkpoint's 6
    losses = [line["train_loss"] for line in read_epochs(folder / "log.txt")]
    assert all(loss == loss for loss in losses)


def test_bfloat16_needs_no_scale(train_here: Train) -> None:
    folder = train_here("run.run_dir=bf16", "run.amp=bf16", "run.iters_per_epoch=3", "run.max_epoch=1")
    content = read_checkpoint(folder / "checkpoint_0.pth")
    assert content["scaler"] is None
    assert content["model"]["llama_proj.weight"].dtype is torch.float32


def poison(monkeypatch: pytest.MonkeyPatch, steps: range) -> None:
    """Make the loss of some training batches not a number."""
    plain, seen = MiniGPT4.forward, []

    def forward(self: MiniGPT4, batch: object) -> torch.Tensor:
        loss = plain(self, batch)
        if self.training:
            seen.append(1)
            if len(seen) - 1 in steps:
                loss = loss * float("nan")
        return loss

    monkeypatch.setattr(MiniGPT4, "forward", forward)


def test_losses_that_stay_nan_end_the_run_and_change_nothing(
    train_here: Train, monkeypatch: pytest.MonkeyPatch, project: Project
) -> None:
    poison(monkeypatch, range(100))
    with pytest.raises(TrainingError, match=r"step 4: the loss is not finite \(samples: picture_\d+"):
        train_here("run.run_dir=poisoned", "run.save_freq=2", "run.iters_per_epoch=20", "run.log_freq=10")
    start = read_checkpoint(project.folder / "poisoned" / "checkpoint_last.pth")["model"]
    fixture = read_checkpoint(Path(__file__).parents[1] / "fixtures" / "parity_a" / "minigpt4.pth")["model"]
    assert all(torch.equal(start[name], fixture[name]) for name in start)


def test_one_bad_step_is_skipped_and_counted(train_here: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, range(1, 3))
    folder = train_here("run.run_dir=one_bad", "run.max_epoch=1", "run.log_freq=4")
    assert read_epochs(folder / "log.txt")[0]["skipped_steps"] == 2
    assert read_epochs(folder / "log.txt")[0]["train_loss"] > 0
    assert "step 1: the loss is not finite" in (folder / "train.log").read_text()


def test_out_of_memory_says_what_to_lower(train_here: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: MiniGPT4, batch: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB.")

    monkeypatch.setattr(MiniGPT4, "forward", forward)
    with pytest.raises(TrainingError, match=r"step 0: the GPU is out of memory.*batch_size"):
        train_here("run.run_dir=too_large")


def test_unreadable_pictures_are_replaced_counted_and_named(train_here: Train, project: Project) -> None:
    rows = [json.loads(line) for line in (project.folder / "data.jsonl").read_text().splitlines()]
    (project.folder / "broken.png").write_bytes(b"no picture")
    rows[3]["image"] = "broken.png"
    (project.folder / "damaged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = train_here("run.run_dir=damaged", "datasets.pictures.annotations=damaged.jsonl")
    assert [line["skipped_images"] for line in read_epochs(folder / "log.txt")] == [1, 1]
    assert "broken.png" in (folder / "train.log").read_text()


def test_nothing_waits_for_the_device_between_log_points(train_here: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if any(name in str(function) for name in WAITING):
                waits.append(f"{function}: {traceback.extract_stack()[-3]}")
            return function(*args, **(kwargs or {}))

    plain = EpochRunner._step

    def step(self: EpochRunner, batches: object) -> None:
        made = iter([next(batches)])  # the batch itself is made on the CPU
        with Watch():
            plain(self, made)

    monkeypatch.setattr(EpochRunner, "_step", step)
    train_here("run.run_dir=watched", "run.max_epoch=1")
    assert waits == []


def test_dry_run_shows_everything_and_writes_nothing(
    train_here: Train, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    train_here("run.run_dir=dry", "run.accum_grad_iters=2", dry_run=True)
    shown = capsys.readouterr().out
    assert not (project.folder / "dry").exists()
    assert "llama_proj" in shown and "3,136" in shown and "524,901" in shown
    assert "###Human: <Img><ImageHere>*8</Img>" in shown
    assert "[[" in shown and "###]]" in shown
    assert "8 (4 a micro-batch x 2 accumulated x 1 processes)" in shown
    assert "1e-06 at step 0" in shown


def test_without_a_validation_split_there_is_no_best(train_here: Train) -> None:
    folder = train_here("run.run_dir=no_val", "run.valid_splits=[]", "run.max_epoch=1")
    assert read_epochs(folder / "log.txt")[0]["val_loss"] is None
    assert not (folder / "checkpoint_best.pth").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epoch": 0}, r"run\.max_epoch: 0 should be at least 1"),
        ({"log_freq": 0}, r"run\.log_freq"),
        ({"init_lr": -1.0}, r"run\.init_lr"),
        ({"max_grad_norm": 0.0}, r"run\.max_grad_norm"),
        ({"beta2": 1.0}, r"run\.beta2"),
    ],
)
def test_numbers_that_make_no_run_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_run(RunConfig(**options))


def test_trackers_are_known_and_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="did you mean 'tensorboard'"):
        check_trackers(["tensorbord"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        check_trackers(["wandb"])


def test_first_loss(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_first_loss(2.1, 32000)
        assert not caplog.records
        check_first_loss(10.375, 32000)
    assert "no better than guessing among 32,000 tokens" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_never_waited_for_in_a_step(train_here: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = EpochRunner._step
    seen: list[int] = []

    def step(self: EpochRunner, batches: object) -> None:
        made = iter([next(batches)])
        if self.state.step:  # the first step fills caches and lets CUDA choose its kernels
            torch.cuda.set_sync_debug_mode("error")
        try:
            plain(self, made)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        seen.append(self.state.step)

    monkeypatch.setattr(EpochRunner, "_step", step)
    train_here("run.run_dir=watched_gpu", "run.max_epoch=1", "run.device=cuda", "run.log_freq=100")
    assert len(seen) > 2

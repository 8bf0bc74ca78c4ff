"""The training loop: number formats, the best epoch, non-finite values, unreadable images, and no waiting."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from minigpt4.common.checkpoint import fingerprint, read_checkpoint
from minigpt4.common.files import asset
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.toy import FILES
from minigpt4.runners.trainer import Trainer, TrainingError, check_first_loss
from tests.runners.project import PARITY_A, Project, read_epochs

Train = Callable[..., Path]
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique")
"""Operators whose result the host must know before it can continue."""


def test_float16_trains_with_a_loss_scale_that_is_saved_and_resumed(train_here: Train) -> None:
    folder = train_here("run.run_dir=fp16", "model.precision=float16", "run.iters_per_epoch=3")
    scaler = read_checkpoint(folder / "checkpoint_0.pth")["scaler"]
    assert scaler["scale"] > 1
    assert "frozen weights in float16, projection in float32, with a loss scale" in (folder / "train.log").read_text()
    train_here(
        "model.precision=float16",
        "run.iters_per_epoch=3",
        "run.max_epoch=3",
        "run.resume_ckpt_path=fp16/checkpoint_1.pth",
    )
    last = read_checkpoint(folder / "checkpoint_2.pth")
    assert last["step"] == 9
    assert last["scaler"]["_growth_tracker"] == 9  # continued from the checkpoint's 6
    losses = [line["train_loss"] for line in read_epochs(folder)]
    assert all(loss == loss for loss in losses)


def test_bfloat16_needs_no_scale(train_here: Train) -> None:
    folder = train_here("run.run_dir=bf16", "model.precision=bfloat16", "run.iters_per_epoch=3", "run.max_epoch=1")
    content = read_checkpoint(folder / "checkpoint_0.pth")
    assert content["scaler"] is None
    assert content["model"]["llama_proj.weight"].dtype is torch.float32


def test_the_best_epoch_is_kept(train_here: Train) -> None:
    folder = train_here("run.run_dir=best", "run.log_freq=4")
    losses = [line["val_loss"] for line in read_epochs(folder)]
    best = read_checkpoint(folder / "checkpoint_best.pth")
    assert best["epoch"] == losses.index(min(losses))
    assert (folder / "checkpoint_best.safetensors").is_file()


def test_without_a_validation_split_there_is_no_best(train_here: Train) -> None:
    folder = train_here("run.run_dir=no_val", "run.valid_splits=[]", "run.max_epoch=1")
    assert read_epochs(folder)[0]["val_loss"] is None
    assert not (folder / "checkpoint_best.pth").exists()


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
    with pytest.raises(TrainingError, match=r"step 4: the loss is not finite \(samples: image_\d+"):
        train_here("run.run_dir=poisoned", "run.save_freq=2", "run.iters_per_epoch=20", "run.log_freq=10")
    start = read_checkpoint(project.folder / "poisoned" / "checkpoint_last.pth")["model"]
    fixture = read_checkpoint(PARITY_A / "minigpt4.pth")["model"]
    assert all(torch.equal(start[name], fixture[name]) for name in start)


@pytest.mark.parametrize("save_freq", ["2", "null"])
def test_weights_that_overflow_end_the_run_and_are_never_saved(
    train_here: Train, project: Project, save_freq: str
) -> None:
    run = f"overflowed_{save_freq}"
    with pytest.raises(TrainingError, match=r"step 0: the trained weights .* are not saved; lower run\.init_lr"):
        train_here(
            f"run.run_dir={run}",
            "run.init_lr=1e39",
            "run.warmup_steps=0",
            "run.iters_per_epoch=4",
            "run.log_freq=100",
            f"run.save_freq={save_freq}",
        )
    assert not list((project.folder / run).glob("checkpoint_*"))


def test_weights_that_overflow_between_two_lines_of_the_log_are_not_saved(train_here: Train, project: Project) -> None:
    with pytest.raises(TrainingError, match=r"step 1: the trained weights .* are not saved; lower run\.init_lr"):
        train_here(
            "run.run_dir=overflowed_later",
            "run.init_lr=1e39",
            "run.warmup_lr=0",
            "run.warmup_steps=1",  # the first step, which is logged, changes nothing
            "run.iters_per_epoch=4",
            "run.log_freq=100",
            "run.save_freq=2",
        )
    assert not list((project.folder / "overflowed_later").glob("checkpoint_*"))


def test_one_bad_step_is_skipped_and_counted(train_here: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, range(1, 3))
    folder = train_here("run.run_dir=one_bad", "run.max_epoch=1", "run.log_freq=4")
    assert read_epochs(folder)[0]["skipped_steps"] == 2
    assert read_epochs(folder)[0]["train_loss"] > 0
    assert "step 1: the loss is not finite" in (folder / "train.log").read_text()


def test_first_loss(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_first_loss(2.1, 32000, {})
        assert not caplog.records
        check_first_loss(10.375, 32000, {})
    assert "no better than guessing among 32,000 tokens" in caplog.text and "broken or random" in caplog.text
    caplog.clear()
    check_first_loss(16.1, 736, {name: fingerprint(asset(file)) for name, file in FILES[0].items()})
    assert "a rehearsal of the steps" in caplog.text and "broken" not in caplog.text


def test_out_of_memory_says_what_to_lower(train_here: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: MiniGPT4, batch: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB.")

    monkeypatch.setattr(MiniGPT4, "forward", forward)
    with pytest.raises(TrainingError, match=r"step 0: the GPU is out of memory.*batch_size"):
        train_here("run.run_dir=too_large")


def test_unreadable_images_are_replaced_counted_and_named(train_here: Train, project: Project) -> None:
    rows = [json.loads(line) for line in (project.folder / "data.jsonl").read_text().splitlines()]
    (project.folder / "broken.png").write_bytes(b"no image")
    rows[3]["image"] = "broken.png"
    (project.folder / "damaged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = train_here("run.run_dir=damaged", "datasets.shapes.annotations=damaged.jsonl")
    assert [line["skipped_images"] for line in read_epochs(folder)] == [1, 1]
    assert "broken.png" in (folder / "train.log").read_text()


def test_nothing_waits_for_the_device_between_log_points(train_here: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if any(name in str(function) for name in WAITING):
                waits.append(f"{function}: {traceback.extract_stack()[-3]}")
            return function(*args, **(kwargs or {}))

    plain = Trainer._step

    def step(self: Trainer, batches: object) -> None:
        made = iter([next(batches)])  # the batch itself is made on the CPU
        with Watch():
            plain(self, made)

    monkeypatch.setattr(Trainer, "_step", step)
    train_here("run.run_dir=watched", "run.max_epoch=1")
    assert waits == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_never_waited_for_in_a_step(train_here: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Trainer._step
    seen: list[int] = []

    def step(self: Trainer, batches: object) -> None:
        made = iter([next(batches)])
        if self.state.step:  # the first step fills caches and lets CUDA choose its kernels
            torch.cuda.set_sync_debug_mode("error")
        try:
            plain(self, made)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        seen.append(self.state.step)

    monkeypatch.setattr(Trainer, "_step", step)
    train_here("run.run_dir=watched_gpu", "run.max_epoch=1", "run.device=cuda", "run.log_freq=100")
    assert len(seen) > 2

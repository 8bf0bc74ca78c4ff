"""A run that trains adapters with the projection: what it saves, and that a resumed one is the same to the last bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from minigpt4.common.checkpoint import read_checkpoint
from tests.runners.project import assert_same_run

Train = Callable[..., Path]
OPTIONS = (
    "model.lora.r=2",
    "model.lora.dropout=0.3",
    "run.iters_per_epoch=3",
    "run.save_freq=2",
    "model.precision=float32",
)


@pytest.fixture
def whole(train_here: Train) -> Path:
    """An uninterrupted run of two epochs, with a checkpoint in the middle of the second."""
    return train_here("run.run_dir=adapters", *OPTIONS)


def test_adapters_are_trained_saved_and_resumed_bit_for_bit(train_here: Train, whole: Path) -> None:
    log = (whole / "train.log").read_text()
    assert "holds a projection only: the adapters (model.lora) begin without effect" in log
    adapters = "llama_model.model.layers.*.self_attn.q_proj.lora_A.default.weight"
    assert f"trainable: {adapters} [2, 64] x 3 = 384" in log and log.count("trainable: ") == 4 + 2
    saved = read_checkpoint(whole / "checkpoint_1.pth")
    adapters = {name: tensor for name, tensor in saved["model"].items() if ".lora_" in name}
    assert len(adapters) == 2 * 2 * 3 and all(tensor.abs().sum() > 0 for tensor in adapters.values())
    assert (saved["metadata"]["lora.r"], saved["metadata"]["lora.targets"]) == ("2", "q_proj, v_proj")
    assert read_checkpoint(whole / "checkpoint_last.pth")["step"] == 4
    for name in ("checkpoint_0.pth", "checkpoint_last.pth"):
        folder = whole.with_name(f"adapters_from_{name}")
        folder.mkdir()
        shutil.copy(whole / name, folder)
        train_here(*OPTIONS, f"run.resume_ckpt_path={folder / name}")
        assert_same_run(folder / "checkpoint_1.pth", whole / "checkpoint_1.pth")

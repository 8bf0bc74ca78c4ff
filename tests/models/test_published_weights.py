"""Published names, and the strict loading of published files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from minigpt4.common.checkpoint import model_state, read_checkpoint
from minigpt4.common.errors import CheckpointError
from tests.models.parity import Case, build_with


def test_qformer_names_survive_the_round_trip(parity_a: Case) -> None:
    published = model_state(read_checkpoint(parity_a.folder / "qformer.pth"))
    ours = parity_a.model.bridge.published_state()
    assert len(ours) > 50
    for name, tensor in ours.items():
        assert torch.equal(tensor, published[name]), name


def changed_file(source: Path, target: Path, change: Any) -> str:
    content = torch.load(source, weights_only=True)
    change(content.get("model", content))
    torch.save(content, target)
    return str(target)


@pytest.mark.parametrize(
    ("key", "file", "name"),
    [
        ("vit_weights", "eva_vit.pth", "blocks.1.attn.qkv.weight"),
        ("q_former_model", "qformer.pth", "Qformer.bert.encoder.layer.0.crossattention.self.key.weight"),
    ],
)
def test_a_missing_and_an_unknown_tensor_are_errors(
    parity_a: Case, tmp_path: Path, key: str, file: str, name: str
) -> None:
    source = parity_a.folder / file
    lacking = changed_file(source, tmp_path / "lacking.pth", lambda state: state.pop(name))
    with pytest.raises(CheckpointError, match="missing"):
        build_with(parity_a, **{key: lacking})
    surplus = changed_file(source, tmp_path / "surplus.pth", lambda state: state.update(stray=torch.zeros(1)))
    with pytest.raises(CheckpointError, match=r"unexpected.*stray"):
        build_with(parity_a, **{key: surplus})


def test_no_frozen_weight_is_filled_with_random_numbers(parity_a: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    filled: list[tuple[str, torch.Size]] = []

    def watch(name: str) -> None:
        original = getattr(torch.Tensor, name)

        def watched(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if tensor.device.type != "meta" and tensor.numel() > 1:
                filled.append((name, tensor.shape))
            return original(tensor, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, watched)

    for name in ("normal_", "uniform_", "trunc_normal_", "erfinv_"):
        if hasattr(torch.Tensor, name):
            watch(name)
    model = build_with(parity_a)
    assert set(filled) <= {("uniform_", model.llama_proj.weight.shape), ("uniform_", model.llama_proj.bias.shape)}
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])

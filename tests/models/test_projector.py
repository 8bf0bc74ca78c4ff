"""The projection of two layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minigpt4.common.checkpoint import write_checkpoint
from minigpt4.common.errors import CheckpointError, ExportError
from minigpt4.common.schema import Projector
from minigpt4.export.fit import check_exportable
from minigpt4.models.loading import load_projection, with_projection
from minigpt4.models.minigpt4 import MiniGPT4
from tests.models.parity import Case, build_with, model_config


@pytest.fixture(scope="module")
def model(parity_a: Case) -> MiniGPT4:
    return build_with(parity_a, projector=Projector.mlp, ckpt=None)


def test_it_is_llavas(model: MiniGPT4) -> None:
    state = model.trainable_state()
    names = ["llama_proj.0.weight", "llama_proj.0.bias", "llama_proj.2.weight", "llama_proj.2.bias"]
    assert list(state) == names == list(model.trainable_names())
    queries = torch.randn(2, 3, model.query_width)
    hidden = torch.nn.functional.gelu(queries @ state[names[0]].T + state[names[1]])
    torch.testing.assert_close(model.project(queries), hidden @ state[names[2]].T + state[names[3]])
    assert model.project(queries.half()).dtype == torch.float32


def test_checkpoints_of_either_form_are_refused_by_the_other(model: MiniGPT4, parity_a: Case, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "mlp.pth", {"model": model.trainable_state(), "metadata": model.metadata()})
    with pytest.raises(CheckpointError, match=r"a projection of the form mlp, this .* model\.projector: linear"):
        build_with(parity_a, ckpt=str(tmp_path / "mlp.pth"))
    with pytest.raises(CheckpointError, match=r"a projection of the form linear, this .* model\.projector: mlp"):
        build_with(parity_a, projector=Projector.mlp)
    before = model.llama_proj[2].weight.clone()
    with pytest.raises(CheckpointError, match="of the form linear"):
        load_projection(model, parity_a.folder / "minigpt4.pth")
    assert torch.equal(model.llama_proj[2].weight, before)


def test_its_checkpoint_loads_into_a_second_model(model: MiniGPT4, tmp_path: Path) -> None:
    changed = {name: tensor + 1 for name, tensor in model.trainable_state().items()}
    write_checkpoint(tmp_path / "c.pth", {"model": changed, "metadata": model.metadata()})
    twin = with_projection(model, tmp_path / "c.pth")
    assert torch.equal(twin.llama_proj[2].bias, model.llama_proj[2].bias + 1)
    assert twin.visual_encoder is model.visual_encoder


def test_no_class_of_transformers_has_it(parity_a: Case) -> None:
    with pytest.raises(ExportError, match=r"model\.projector: mlp, but Blip2ForConditionalGeneration has one linear"):
        check_exportable(model_config(parity_a.folder, projector=Projector.mlp))

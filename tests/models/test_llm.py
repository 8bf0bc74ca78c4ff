"""Compiled blocks compute the same, and new lengths do not compile anew."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from minigpt4.models.llm import compile_blocks
from minigpt4.models.loading import build_model
from tests.models.parity import Case, model_config

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler (g++)")


class Marked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.compiled: list[bool | None] = []

    def compile(self, *args: object, dynamic: bool | None = None, **kwargs: object) -> None:
        self.compiled.append(dynamic)


def test_the_outermost_stacks_are_compiled_with_free_sizes() -> None:
    model = nn.Module()
    model.encoder = nn.Module()
    model.encoder.layers = nn.ModuleList([Marked(), Marked()])
    model.encoder.layers[0].parts = nn.ModuleList([Marked()])
    model.head = Marked()
    compile_blocks(model, None)
    assert [block.compiled for block in model.encoder.layers] == [[True], [True]]
    assert model.head.compiled == [] and model.encoder.layers[0].parts[0].compiled == []


@needs_compiler
@pytest.mark.slow
def test_compiled_steps_give_the_same_loss_and_gradient(parity_a: Case, tmp_path: Path) -> None:
    torch._dynamo.reset()
    counters.clear()
    model = build_model(model_config(parity_a.folder, compile=True), torch.device("cpu"), torch.float32)
    inputs = parity_a.inputs["train_list"]
    graphs = []
    for answers in (inputs["answer"], [answer + " and more" for answer in inputs["answer"]], ["one", "two three"]):
        batch = parity_a.batch(inputs["images"], inputs["instruction"], answers)
        results = []
        for each in (model, parity_a.model):
            each.zero_grad()
            loss = each(batch)
            loss.backward()
            results.append((loss.detach(), each.llama_proj.weight.grad.clone()))
        (loss, gradient), (plain_loss, plain_gradient) = results
        torch.testing.assert_close(loss, plain_loss, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient, plain_gradient, rtol=1e-3, atol=1e-4)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert graphs[0] == graphs[1] == graphs[2]

"""The loss of a step: each target token of the global batch weighs the same."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from minigpt4.common.distributed import GradientSum, Processes
from minigpt4.common.registry import tasks
from minigpt4.common.types import Batch, Encoded, Sample
from minigpt4.datasets.loaders import collate

SCALER = torch.amp.GradScaler("cpu", enabled=False)
ALONE = Processes(device=torch.device("cpu"))


class Stub(nn.Module):
    """A model whose target tokens have different losses, which shows how they are weighted."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.llama_proj = nn.Linear(4, 4)
        self.register_buffer("words", torch.randn(50, 4))

    def forward(self, batch: Batch) -> Tensor:
        assert batch.images is not None
        embeds = self.llama_proj(batch.images.flatten(1)[:, :4])
        scores = embeds @ self.words.T
        losses = [-scores[row].log_softmax(0)[labels[labels >= 0]].sum() for row, labels in enumerate(batch.labels)]
        return torch.stack(losses).sum()


def samples(lengths: list[int]) -> list[Sample]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for number, length in enumerate(lengths):
        ids = torch.randint(0, 50, (length,), generator=generator).tolist()
        image = torch.randn(3, 2, 2, generator=generator)
        made.append(
            Sample(image_id=str(number), images=(image,), encoded=Encoded(input_ids=[1, *ids], labels=[-100, *ids]))
        )
    return made


def gradient(batches: list[list[Sample]]) -> tuple[float, Tensor]:
    model = Stub()
    task = tasks.get("image_text_pretrain")()
    gradients = GradientSum(model.parameters(), ALONE)
    seeds = range(len(batches))
    loss = task.train_step(model, [collate(b) for b in batches], seeds, gradients, ALONE, SCALER)
    assert model.llama_proj.weight.grad is not None
    return float(loss.local_sum / loss.targets), model.llama_proj.weight.grad


@pytest.mark.parametrize("lengths", [[5] * 8, [1, 30, 2, 9, 17, 3, 3, 40]])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_accumulation_equals_one_big_batch(lengths: list[int], size: int) -> None:
    everything = samples(lengths)
    expected_loss, expected = gradient([everything])
    parts = [everything[first : first + size] for first in range(0, 8, size)]
    loss, accumulated = gradient(parts)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    torch.testing.assert_close(accumulated, expected, rtol=1e-5, atol=1e-7)


def test_validation_is_the_mean_over_tokens_whatever_the_batches() -> None:
    model, everything = Stub(), samples([1, 30, 2, 9, 17])
    task = tasks.get("image_text_pretrain")()
    results = [
        task.validate(model, [collate(everything[i : i + size]) for i in range(0, 5, size)], ALONE)
        for size in (1, 2, 5)
    ]
    assert all(math.isclose(result.loss, results[0].loss, rel_tol=1e-6) for result in results)
    assert {(result.samples, result.targets) for result in results} == {(5, 59)}
    assert not model.training


def test_validation_of_an_empty_share() -> None:
    result = tasks.get("image_text_pretrain")().validate(Stub(), [], ALONE)
    assert (result.loss, result.targets, result.samples) == (0.0, 0, 0)

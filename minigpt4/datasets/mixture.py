"""Several datasets, addressed by the keys of the sampler."""

from __future__ import annotations

from collections.abc import Sequence

from torch.utils.data import Dataset

from minigpt4.common.types import Sample
from minigpt4.datasets.instruction import InstructionDataset
from minigpt4.datasets.sampler import Key


class MixtureDataset(Dataset[Sample]):
    """What the sampler's keys stand for.

    Args:
        datasets: In the order of `Key.dataset`.
    """

    def __init__(self, datasets: Sequence[InstructionDataset]) -> None:
        self.datasets = datasets

    def __len__(self) -> int:
        return sum(len(dataset) for dataset in self.datasets)

    def __getitem__(self, key: Key) -> Sample:
        return self.datasets[key.dataset].sample(key.record, key.draw)

    def text_length(self, key: Key) -> int:
        """Characters of a sample's instruction and answer; no picture is opened."""
        return self.datasets[key.dataset].text_length(key.record, key.draw)

"""A small data set on disk, and datasets made of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from PIL import Image

from minigpt4.common.schema import Config, DatasetConfig, ModelConfig, RunConfig
from minigpt4.conversation.template import IMAGE_TAG, PromptEncoder, Template
from minigpt4.datasets.builders import build_datasets
from minigpt4.datasets.instruction import InstructionDataset
from minigpt4.datasets.shards.index import ShardIndex
from tests.ascii_tokenizer import AsciiTokenizer

SIDE = 8


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def encoder() -> PromptEncoder:
    return PromptEncoder(AsciiTokenizer(), Template(pattern="H: {} A: ", end="#"), num_image_tokens=2)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Pictures 0.png to 19.png, each of one grey."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(20):
        Image.new("RGB", (4, 4), (number * 10,) * 3).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def model_config(tmp_path: Path) -> ModelConfig:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"{IMAGE_TAG} Ask {letter}.\n" for letter in "ABCD"))
    return ModelConfig(image_size=SIDE, prompt_path=str(prompts))


@pytest.fixture
def make_config(tmp_path: Path, images: Path, model_config: ModelConfig) -> Callable[..., Config]:
    """A configuration of one dataset `mine` of n rows, three captions each, 16 for training where n is 20."""

    def make(rows: int = 20, **run: Any) -> Config:
        content = [
            {
                "image": f"{number % 20}.png",
                "id": f"id{number}",
                "captions": [f"row {number} caption {letter}" for letter in "xyz"],
                "split": "val" if number >= rows - 4 else "train",
            }
            for number in range(rows)
        ]
        annotations = write_jsonl(tmp_path / f"mine{rows}.jsonl", content)
        dataset = DatasetConfig(reader="jsonl", annotations=str(annotations), images=str(images))
        defaults = {"num_workers": 0, "device": "cpu", "batch_size": 4, "eval_batch_size": 3}
        return Config(model=model_config, datasets={"mine": dataset}, run=RunConfig(**{**defaults, **run}))

    return make


def build(
    cfg: Config,
    encoder: PromptEncoder,
    *splits: str,
    train: bool = True,
    prepared: Mapping[str, ShardIndex] = MappingProxyType({}),
) -> dict[str, InstructionDataset]:
    return build_datasets(cfg.datasets, cfg.model, encoder, splits, seed=cfg.run.seed, train=train, prepared=prepared)

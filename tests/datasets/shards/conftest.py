"""Small shards."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import webdataset
from PIL import Image

from minigpt4.common.schema import Config, DatasetConfig, ModelConfig, RunConfig
from minigpt4.datasets.shards.dataset import ShardDataset
from tests.datasets.conftest import build

Members = dict[str, bytes]
PER_SHARD = 6


def encoded_image(grey: int, kind: str = "PNG") -> bytes:
    """A small image of one grey, encoded."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (grey,) * 3).save(file, kind)
    return file.getvalue()


def write_shard(path: Path, samples: Iterable[tuple[str, Members]]) -> Path:
    """A tar of (key, suffix -> content)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path), encoder=False, mtime=0.0) as tar:
        for key, members in samples:
            tar.write({"__key__": key, **members})
    return path


def numbered(start: int, count: int, name: str = "") -> list[tuple[str, Members]]:
    """Samples whose captions and greys tell their numbers."""
    return [
        (f"{n:05d}", {"png": encoded_image(n), "txt": f"{name}caption {n}".encode()})
        for n in range(start, start + count)
    ]


def make_shards(folder: Path, shards: int, name: str = "") -> list[Path]:
    """Shards 00000.tar and so on with six samples each, numbered through."""
    return [write_shard(folder / f"{s:05d}.tar", numbered(s * PER_SHARD, PER_SHARD, name)) for s in range(shards)]


def broken_sample(path: Path, place: int, **members: bytes) -> None:
    """Write a shard of six again, with other members in one of its samples."""
    first = int(path.stem) * PER_SHARD
    samples = numbered(first, PER_SHARD)
    samples[place] = (samples[place][0], {**samples[place][1], **members})
    write_shard(path, samples)


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Five shards of six samples."""
    return make_shards(tmp_path / "wide", 5)


@pytest.fixture
def shard_config(tmp_path: Path, model_config: ModelConfig) -> Callable[..., Config]:
    """Two sources in shards of six samples: `wide` with thirty and `narrow` with twelve, 115 to 14."""

    def make(**run) -> Config:
        sources = {"wide": (5, 115.0), "narrow": (2, 14.0)}
        datasets = {}
        for name, (count, ratio) in sources.items():
            if not (tmp_path / name).exists():
                make_shards(tmp_path / name, count, name + " ")
            datasets[name] = DatasetConfig(
                builder="webdataset",
                shards=f"{tmp_path}/{name}/{{00000..{count - 1:05d}}}.tar",
                shuffle_shards=2,
                sample_ratio=ratio,
            )
        defaults = {"num_workers": 0, "device": "cpu", "batch_size": 8}
        return Config(model=model_config, datasets=datasets, run=RunConfig(**{**defaults, **run}))

    return make


@pytest.fixture
def dataset(shards: list[Path], shard_config, encoder) -> ShardDataset:
    built = build(shard_config(), encoder, "train")["wide"]
    assert isinstance(built, ShardDataset)
    return built

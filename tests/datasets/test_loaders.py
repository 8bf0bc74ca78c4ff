from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader

from minigpt4.common.errors import ConfigError, DataError, RemoteDataError
from minigpt4.common.schema import Config
from minigpt4.common.types import IGNORED_LABEL, IMAGE_POSITION, Batch, Encoded, Sample
from minigpt4.conversation.template import PromptEncoder
from minigpt4.datasets.instruction import InstructionDataset
from minigpt4.datasets.loaders import collate, steps_per_epoch, train_loader, valid_loader
from minigpt4.processors.image import normalize
from tests.datasets.conftest import build

MakeConfig = Callable[..., Config]


def datasets_of(cfg: Config, encoder: PromptEncoder, split: str = "train") -> dict[str, InstructionDataset]:
    return build(cfg, encoder, split, train=split == "train")


def seen(batches: list[Batch]) -> list[tuple[str, list[int]]]:
    return [
        (name, row[: int(length)].tolist())
        for batch in batches
        for name, row, length in zip(batch.image_ids, batch.input_ids, batch.lengths, strict=True)
    ]


class TestTraining:
    def test_steps_of_an_epoch(self, make_config: MakeConfig, encoder: PromptEncoder) -> None:
        cfg = make_config()
        data = datasets_of(cfg, encoder)
        assert [steps_per_epoch(cfg.run, data, world) for world in (1, 2, 3, 8)] == [4, 2, 1, 1]
        cfg.run.accum_grad_iters = 2
        assert steps_per_epoch(cfg.run, data, 1) == 2
        cfg.run.iters_per_epoch = 500
        assert steps_per_epoch(cfg.run, data, 1) == 500

    def test_an_epoch_has_every_sample_once_and_the_next_in_another_order(
        self, make_config: MakeConfig, encoder: PromptEncoder
    ) -> None:
        cfg = make_config(max_epoch=2)
        batches = list(train_loader(cfg.run, datasets_of(cfg, encoder)))
        assert len(batches) == 8 and all(len(batch.image_ids) == 4 for batch in batches)
        first, second = ([name for name, _ in seen(batches[start : start + 4])] for start in (0, 4))
        assert sorted(first) == sorted(second) == sorted(f"id{number}" for number in range(16))
        assert first != second

    def test_two_processes_make_the_same_steps(self, make_config: MakeConfig, encoder: PromptEncoder) -> None:
        cfg = make_config(max_epoch=3)
        alone = list(train_loader(cfg.run, datasets_of(cfg, encoder)))
        cfg.run.batch_size = 2
        ranks = [list(train_loader(cfg.run, datasets_of(cfg, encoder), world_size=2, rank=rank)) for rank in (0, 1)]
        for complete, *parts in zip(alone, *ranks, strict=True):
            assert seen([complete]) == seen(parts)
            assert complete.num_targets == sum(part.num_targets for part in parts)

    def test_a_resumed_loader_continues(self, make_config: MakeConfig, encoder: PromptEncoder) -> None:
        cfg = make_config(max_epoch=3, accum_grad_iters=2)
        complete = list(train_loader(cfg.run, datasets_of(cfg, encoder)))
        rest = list(train_loader(cfg.run, datasets_of(cfg, encoder), start_step=3))
        assert len(rest) == len(complete) - 6
        assert seen(rest) == seen(complete[6:])

    def test_workers_change_nothing(self, make_config: MakeConfig, encoder: PromptEncoder) -> None:
        cfg = make_config(max_epoch=1)
        plain = list(train_loader(cfg.run, datasets_of(cfg, encoder)))
        cfg.run.num_workers = 2
        shared = list(train_loader(cfg.run, datasets_of(cfg, encoder)))
        assert seen(shared) == seen(plain)
        for one, other in zip(plain, shared, strict=True):
            assert one.images is not None and other.images is not None and torch.equal(one.images, other.images)

    def test_iterating_leaves_the_global_generator_alone(self, make_config: MakeConfig, encoder: PromptEncoder) -> None:
        cfg = make_config(max_epoch=1)
        torch.manual_seed(0)
        before = torch.get_rng_state()
        list(train_loader(cfg.run, datasets_of(cfg, encoder)))
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_an_error_is_one_line(
        self, make_config: MakeConfig, encoder: PromptEncoder, images: Path, workers: int
    ) -> None:
        cfg = make_config(max_epoch=1, num_workers=workers)
        for path in images.iterdir():
            path.unlink()
        with pytest.raises(DataError) as caught:
            list(train_loader(cfg.run, datasets_of(cfg, encoder)))
        assert str(caught.value).startswith("dataset mine: 10 images in a row cannot be read")
        assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)

    @pytest.mark.parametrize("kind", [ConfigError, RemoteDataError])
    def test_a_workers_error_keeps_its_kind(
        self, make_config: MakeConfig, encoder: PromptEncoder, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
    ) -> None:
        try:
            raise kind("the disk is full: OSError: 28")
        except kind:
            sent = ExceptionWrapper(where="in DataLoader worker process 0")  # as a worker sends it
        monkeypatch.setattr(DataLoader, "__iter__", lambda _: sent.reraise())
        cfg = make_config(max_epoch=1)
        with pytest.raises(kind, match=r"^the disk is full: OSError: 28$"):
            list(train_loader(cfg.run, datasets_of(cfg, encoder)))

    def test_replaced_images_are_reported(self, make_config: MakeConfig, encoder: PromptEncoder, images: Path) -> None:
        (images / "5.png").write_bytes(b"broken")
        cfg = make_config(max_epoch=1)
        messages = [message for batch in train_loader(cfg.run, datasets_of(cfg, encoder)) for message in batch.skipped]
        assert messages and all("5.png cannot be read" in message for message in messages)

    def test_grouping_by_length_needs_less_padding(self, make_config: MakeConfig, encoder: PromptEncoder) -> None:
        def padding(group: int) -> int:
            cfg = make_config(max_epoch=8, group_by_length=group)
            batches = list(train_loader(cfg.run, datasets_of(cfg, encoder)))
            assert len(batches) == 32
            return sum(batch.input_ids.numel() - sum(batch.lengths) for batch in batches)

        assert padding(8) < 0.6 * padding(1)


class TestMixture:
    def make(self, make_config: MakeConfig, **run) -> Config:
        cfg = make_config(**run)
        cfg.datasets["other"] = make_config(10).datasets["mine"]
        return cfg

    def test_the_ratio_is_kept(self, make_config: MakeConfig, encoder: PromptEncoder) -> None:
        cfg = self.make(make_config, max_epoch=1, iters_per_epoch=100)
        cfg.datasets["mine"].sample_ratio = 3
        data = datasets_of(cfg, encoder)
        sampler = train_loader(cfg.run, data).batch_sampler
        assert sampler is not None
        chosen = [key.dataset for keys in sampler for key in keys]
        assert sum(number == 0 for number in chosen) / len(chosen) == pytest.approx(0.75, abs=0.01)


class TestValidation:
    @pytest.mark.parametrize("world", [1, 2, 3, 6])
    def test_ranks_share_without_duplicates(self, make_config: MakeConfig, encoder: PromptEncoder, world: int) -> None:
        cfg = make_config()
        names: list[str] = []
        for rank in range(world):
            loader = valid_loader(cfg.run, datasets_of(cfg, encoder, "val"), world_size=world, rank=rank)
            assert loader is not None
            names += [name for name, _ in seen(list(loader))]
        assert sorted(names) == ["id16", "id17", "id18", "id19"]

    def test_it_is_the_same_each_time(self, make_config: MakeConfig, encoder: PromptEncoder) -> None:
        cfg = make_config(num_workers=1)
        loader = valid_loader(cfg.run, datasets_of(cfg, encoder, "val"))
        assert loader is not None and len(loader) == 2
        assert seen(list(loader)) == seen(list(loader))

    def test_several_datasets_follow_each_other(self, make_config: MakeConfig, encoder: PromptEncoder) -> None:
        cfg = make_config()
        cfg.datasets["other"] = make_config(10).datasets["mine"]
        loader = valid_loader(cfg.run, datasets_of(cfg, encoder, "val"))
        assert loader is not None
        assert [name for name, _ in seen(list(loader))] == [f"id{number}" for number in (16, 17, 18, 19, 6, 7, 8, 9)]

    def test_no_dataset_is_no_loader(self, make_config: MakeConfig) -> None:
        assert valid_loader(make_config().run, {}) is None


def sample_of(name: str, ids: list[int], targets: int, count: int = 1, skipped: tuple[str, ...] = ()) -> Sample:
    labels = [IGNORED_LABEL] * (len(ids) - targets) + ids[len(ids) - targets :]
    images = tuple(torch.full((3, 2, 2), float(len(ids))) for _ in range(count))
    return Sample(image_id=name, images=images, encoded=Encoded(input_ids=ids, labels=labels), skipped=skipped)


class TestCollate:
    def test_samples_are_padded_on_the_right(self) -> None:
        batch = collate([sample_of("a", [1, IMAGE_POSITION, 5], 1), sample_of("b", [1, IMAGE_POSITION, 6, 7, 8], 2)])
        assert batch.image_ids == ["a", "b"]
        assert batch.input_ids.tolist() == [[1, IMAGE_POSITION, 5, 0, 0], [1, IMAGE_POSITION, 6, 7, 8]]
        ignored = IGNORED_LABEL
        assert batch.labels.tolist() == [[ignored, ignored, 5, ignored, ignored], [ignored, ignored, ignored, 7, 8]]
        assert batch.lengths == [3, 5]
        assert batch.num_targets == 3
        assert batch.images is not None and batch.images[:, 0, 0, 0].tolist() == [3.0, 5.0]
        assert batch.skipped == []

    def test_images_of_all_samples_follow_each_other(self) -> None:
        batch = collate([sample_of("a", [1, 2], 1, count=2), sample_of("b", [1], 1, count=1)])
        assert batch.images is not None and batch.images[:, 0, 0, 0].tolist() == [2.0, 2.0, 1.0]

    def test_no_image_at_all(self) -> None:
        assert collate([sample_of("a", [1, 2], 1, count=0)]).images is None

    def test_messages_of_all_samples_are_kept(self) -> None:
        batch = collate([sample_of("a", [1], 1, skipped=("x", "y")), sample_of("b", [1], 1, skipped=("z",))])
        assert batch.skipped == ["x", "y", "z"]
        assert batch.to("cpu").skipped == ["x", "y", "z"]

    def test_images_stay_uint8(self) -> None:
        levels = torch.full((3, 2, 2), 7, dtype=torch.uint8)
        batch = collate([replace(sample_of(name, [1], 1), images=(levels,)) for name in "ab"])
        assert batch.images is not None and batch.images.dtype is torch.uint8
        assert batch.images.unique().tolist() == [7]

    def test_grey_levels_beside_a_users_floats_are_normalised(self) -> None:
        levels = torch.full((3, 2, 2), 7, dtype=torch.uint8)
        batch = collate([sample_of("floats", [1, 2], 1), replace(sample_of("levels", [1], 1), images=(levels,))])
        assert batch.images is not None
        assert batch.images[0].unique().tolist() == [2.0]
        torch.testing.assert_close(batch.images[1], normalize(levels))

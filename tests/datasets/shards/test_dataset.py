from __future__ import annotations

import logging
import pickle
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from minigpt4.common.errors import ConfigError, DataError
from minigpt4.common.schema import BadData, Config
from minigpt4.conversation.template import PromptEncoder
from minigpt4.datasets.builders import prepare_datasets
from minigpt4.datasets.loaders import train_loader
from minigpt4.datasets.shards import dataset as dataset_module
from minigpt4.datasets.shards import index as index_module
from minigpt4.datasets.shards.dataset import ShardDataset, ShardRecords
from minigpt4.datasets.shards.index import open_index
from minigpt4.processors.image import decode_image
from tests.datasets.conftest import SIDE, build
from tests.datasets.shards.conftest import broken_sample, encoded_image, numbered, write_shard

MakeConfig = Callable[..., Config]
DRAWS = 10_000


def opened(shards: list[Path]) -> ShardRecords:
    return ShardRecords(open_index(shards, None))


class TestRecords:
    def test_any_sample_at_any_time(self, shards: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dataset_module, "OPEN_SHARDS", 2)
        records = opened(shards)
        assert len(records) == 30
        numbers = list(range(30))
        random.Random(0).shuffle(numbers)
        for number in numbers:
            sample = records.sample(number)
            assert sample.record.answers == (f"caption {number}",)
            assert sample.image == encoded_image(number)
            assert decode_image(sample.image)[0, 0].tolist() == [number] * 3
            assert records[number] == sample.record
            assert records[0].answers == ("caption 0",)
            assert len(records._open) <= 2

    def test_the_caption_alone(self, shards: list[Path]) -> None:
        records = opened(shards)
        record = records[13]
        assert (record.image_id, record.image, record.split) == ("00002/00013", "00002.tar/00013.png", "train")
        assert record.source == f"{shards[2]}, sample 00013"
        assert records[-1].answers == ("caption 29",)
        assert [record.answers[0] for record in records[4:8]] == [f"caption {n}" for n in range(4, 8)]
        with pytest.raises(IndexError):
            records[30]

    def test_the_same_samples_as_webdataset_reads(self, shards: list[Path]) -> None:
        streamed = webdataset.WebDataset([str(path) for path in shards], shardshuffle=False)
        expected = [(sample["png"], sample["txt"].decode()) for sample in streamed]
        records = opened(shards)
        ours = [(records.sample(number).image, records[number].answers[0]) for number in range(len(records))]
        assert ours == expected

    def test_captions_in_json_and_long_names(self, tmp_path: Path) -> None:
        key = "folder/" + "k" * 120
        path = write_shard(
            tmp_path / "a.tar", [(key, {"jpg": encoded_image(1, "JPEG"), "json": b'{"caption": " \\u00e9t\\u00e9 "}'})]
        )
        records = opened([path])
        assert records[0].answers == ("été",)
        assert records[0].image_id == f"a/{key}"

    def test_workers_open_the_files_themselves(self, shards: list[Path]) -> None:
        records = opened(shards)
        records.sample(0)
        copy = pickle.loads(pickle.dumps(records))
        assert not copy._open and copy.sample(7).record == records.sample(7).record

    @pytest.mark.parametrize(
        ("members", "message"),
        [
            ({"txt": b"  \n"}, "sample 00008: the caption in 00008.txt is empty"),
            ({"txt": b"\xff\xfe\xfa"}, "sample 00008: 00008.txt is not UTF-8"),
            ({"json": b'{"caption": '}, "sample 00008: 00008.json is broken JSON"),
            ({"json": b'{"captions": "x"}'}, "sample 00008: 00008.json has no text under 'caption'"),
            ({"json": b'["x"]'}, "sample 00008: 00008.json has no text under 'caption'"),
            ({"json": b'{"caption": null}'}, "sample 00008: 00008.json has no text under 'caption'"),
            ({"json": b"[" * 5000}, "sample 00008: 00008.json is JSON that cannot be read"),
            ({"json": b'{"caption": "x", "n": ' + b"9" * 5000 + b"}"}, "sample 00008: 00008.json is JSON that cannot"),
        ],
    )
    def test_a_bad_caption_names_shard_and_sample(
        self, shards: list[Path], members: dict[str, bytes], message: str
    ) -> None:
        samples = numbered(6, 6)
        samples[2] = ("00008", {"png": encoded_image(8), **members})
        write_shard(shards[1], samples)
        with pytest.raises(DataError) as caught:
            opened(shards).sample(8)
        assert str(caught.value).startswith(f"{shards[1]}, {message}")

    def test_a_bad_image_names_shard_and_sample(self, shards: list[Path]) -> None:
        samples = numbered(6, 6)
        samples[2] = ("00008", {"png": b"no image", "txt": b"x"})
        write_shard(shards[1], samples)
        sample = opened(shards).sample(8)
        with pytest.raises(DataError, match=rf"image 00008\.png in {shards[1]} cannot be read"):
            decode_image(sample.image, sample.image_name)

    def test_a_caption_of_another_sample_is_refused(self, shards: list[Path]) -> None:
        index = open_index(shards[:1], None)
        (file,) = index.folder.glob("*.npy")
        rows = np.load(file)
        rows["caption"], rows["caption_bytes"] = rows["caption"][::-1].copy(), rows["caption_bytes"][::-1].copy()
        np.save(file, rows)
        with pytest.raises(DataError, match=r"has changed since it was indexed .* is no caption of "):
            ShardRecords(index).sample(0)

    def test_a_shard_that_changes_during_a_run(self, shards: list[Path]) -> None:
        records = opened(shards)
        for content in (shards[0].read_bytes()[512:], b""):
            shards[1].write_bytes(content)
            with pytest.raises(DataError, match=rf"shard {shards[1]} has changed since it was indexed"):
                records.sample(9)
        broken_sample(shards[1], 3, png=encoded_image(9)[:-1])  # everything else stays in place
        with pytest.raises(DataError, match="another member than when it was indexed"):
            records.sample(9)
        shards[2].unlink()
        with pytest.raises(DataError, match=rf"shard {shards[2]} cannot be read"):
            records.sample(14)


def test_a_sample_is_image_prompt_and_caption(dataset: ShardDataset, encoder: PromptEncoder) -> None:
    sample = dataset.sample(13, epoch=2)
    assert (sample.image_id, sample.answer, sample.skipped) == ("00002/00013", "caption 13", ())
    assert sample.images[0].shape == (3, SIDE, SIDE)
    assert sample.encoded == encoder.encode_example(sample.instruction, "caption 13")
    assert len({dataset.sample(13, epoch).instruction for epoch in range(40)}) == 4


class TestStream:
    def names(self, cfg: Config, encoder: PromptEncoder, **share: int) -> list[list[str]]:
        """Names of the samples of each batch."""
        loader = train_loader(cfg.run, build(cfg, encoder, "train"), **share)
        return [batch.image_ids for batch in loader]

    def keys(self, cfg: Config, encoder: PromptEncoder, start: int, world: int) -> Counter[tuple[int, int]]:
        """(dataset, record) of 10,000 draws from `start` on, over all processes."""
        found: Counter[tuple[int, int]] = Counter()
        cfg.run.batch_size = 200 // world
        cfg.run.iters_per_epoch, cfg.run.max_epoch = DRAWS // 200, 2
        for rank in range(world):
            sampler = train_loader(
                cfg.run, build(cfg, encoder, "train"), world_size=world, rank=rank, start_step=start // 200
            ).batch_sampler
            assert sampler is not None
            batches = list(sampler)[: DRAWS // 200]
            assert len(batches) == DRAWS // 200  # the same number on every rank, so that none waits
            found.update((key.dataset, key.record) for keys in batches for key in keys)
        return found

    def test_the_mixture_is_exact_on_any_number_of_processes(
        self, shard_config: MakeConfig, encoder: PromptEncoder
    ) -> None:
        one, two, four = (self.keys(shard_config(), encoder, 0, world) for world in (1, 2, 4))
        assert one.total() == DRAWS and one == two == four
        wide = sum(count for (dataset, _), count in one.items() if dataset == 0)
        assert wide / DRAWS == pytest.approx(115 / 129, abs=0.01)

    def test_epochs_differ(self, shard_config: MakeConfig, encoder: PromptEncoder) -> None:
        first, second = (self.keys(shard_config(), encoder, start, 1) for start in (0, DRAWS))
        assert first.total() == second.total() and first != second
        again = self.names(shard_config(max_epoch=2, iters_per_epoch=4), encoder)
        assert again[:4] != again[4:]
        assert again != self.names(shard_config(max_epoch=2, iters_per_epoch=4, seed=1), encoder)

    def test_every_sample_comes_once_an_epoch(self, shard_config: MakeConfig, encoder: PromptEncoder) -> None:
        cfg = shard_config(max_epoch=1, iters_per_epoch=3)
        del cfg.datasets["narrow"]
        cfg.run.batch_size = 10
        names = [name for batch in self.names(cfg, encoder) for name in batch]
        assert sorted(names) == [f"{n // 6:05d}/{n:05d}" for n in range(30)]
        for group in (names[:12], names[12:24]):  # two shards at a time
            assert len({name.split("/")[0] for name in group}) == 2

    def test_it_resumes_in_the_middle_and_with_workers(self, shard_config: MakeConfig, encoder: PromptEncoder) -> None:
        cfg = shard_config(max_epoch=2, iters_per_epoch=6)
        complete = self.names(cfg, encoder)
        assert self.names(cfg, encoder, start_step=5) == complete[5:]
        cfg.run.num_workers = 2
        assert self.names(cfg, encoder, start_step=5) == complete[5:]


class TestBadSamples:
    def test_another_one_replaces_it_and_both_kinds_are_named(
        self, shards: list[Path], shard_config: MakeConfig, encoder: PromptEncoder
    ) -> None:
        broken_sample(shards[1], 2, png=b"no image")
        broken_sample(shards[3], 0, txt=b" ")
        dataset = build(shard_config(), encoder, "train")["wide"]
        for number, message in ((8, f"image 00008.png in {shards[1]} cannot be read"), (18, "sample 00018: the cap")):
            sample = dataset.sample(number, epoch=0)
            assert message in sample.skipped[0]
            substitute = int(sample.image_id[-5:])
            assert substitute not in (8, 18) and sample.answer == f"caption {substitute}"
            assert dataset.sample(number, epoch=0).image_id == sample.image_id
        batches = list(train_loader(shard_config(max_epoch=1, iters_per_epoch=8).run, {"wide": dataset}))
        assert sum(len(batch.skipped) for batch in batches) >= 2

    def test_ten_in_a_row_end_the_run(
        self, shards: list[Path], shard_config: MakeConfig, encoder: PromptEncoder
    ) -> None:
        for path in shards:
            first = int(path.stem) * 6
            write_shard(path, [(key, {"png": b"x", "txt": b"x"}) for key, _ in numbered(first, 6)])
        with pytest.raises(DataError, match=r"dataset wide: 10 images in a row .*the shards look wrong .*check"):
            build(shard_config(), encoder, "train")["wide"].sample(0, 0)


class TestBadShards:
    @pytest.fixture
    def spoilt(self, shards: list[Path]) -> list[Path]:
        """One missing, one truncated in its fifth sample, one without captions; two are intact."""
        shards[0].unlink()
        content = write_shard(shards[1], numbered(6, 6)).read_bytes()
        shards[1].write_bytes(content[: len(content) // 6 * 4])
        write_shard(shards[2], [(f"{n:05d}", {"png": encoded_image(n)}) for n in range(12, 18)])
        return shards

    def test_stop_names_the_first_and_counts_the_others(
        self, spoilt: list[Path], shard_config: MakeConfig, encoder: PromptEncoder
    ) -> None:
        expected = rf"datasets\.wide\.shards: {spoilt[0]}: it does not exist \(and 2 more shards\);.*bad_shards=skip"
        with pytest.raises(DataError, match=expected):
            build(shard_config(), encoder, "train")

    def test_skip_names_each_and_trains_on_the_rest(
        self, spoilt: list[Path], shard_config: MakeConfig, encoder: PromptEncoder, caplog: pytest.LogCaptureFixture
    ) -> None:
        cfg = shard_config(max_epoch=1, iters_per_epoch=5)
        cfg.datasets["wide"].bad_shards = BadData.skip
        with caplog.at_level(logging.WARNING):
            dataset = build(cfg, encoder, "train")["wide"]
        for path, problem in zip(spoilt, ("does not exist", "truncated", "none of its 6 images"), strict=False):
            assert f"shard {path}" in caplog.text and problem in caplog.text
        complete = {int(dataset[number].image_id[-5:]) for number in range(len(dataset))}
        assert complete >= {6, 7, *range(18, 30)} and not complete & {*range(6), *range(12, 18)}
        assert all(not batch.skipped for batch in train_loader(cfg.run, {"wide": dataset}))

    def test_nothing_left_is_an_error_even_then(
        self, shards: list[Path], shard_config: MakeConfig, encoder: PromptEncoder
    ) -> None:
        cfg = shard_config()
        for path in shards:
            path.unlink()
        cfg.datasets["wide"].bad_shards = BadData.skip
        with pytest.raises(DataError, match=r"does not exist \(and 4 more shards\); set the pattern.*MINIGPT4_DATA"):
            build(cfg, encoder, "train")


class TestPrepared:
    @pytest.fixture
    def checked_files(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Names of the files whose size and time of change are checked."""
        names: list[str] = []
        stat = index_module._stat

        def counting(path: Path) -> tuple[int, int] | None:
            names.append(path.name)
            return stat(path)

        monkeypatch.setattr(index_module, "_stat", counting)
        return names

    def test_the_other_processes_check_the_table_only(
        self, shard_config: MakeConfig, encoder: PromptEncoder, checked_files: list[str]
    ) -> None:
        cfg = shard_config()
        alone = build(cfg, encoder, "train")
        sent = pickle.dumps(prepare_datasets(cfg.datasets))
        checked_files.clear()
        datasets = build(cfg, encoder, "train", prepared=pickle.loads(sent))
        assert checked_files == ["shards.json"] * 2
        assert {name: dataset.identity() for name, dataset in datasets.items()} == {
            name: dataset.identity() for name, dataset in alone.items()
        }
        assert datasets["wide"].sample(13, 0).answer == alone["wide"].sample(13, 0).answer

    @pytest.mark.parametrize("lost", [True, False], ids=["no index here", "another index here"])
    def test_a_machine_with_disks_of_its_own_checks_for_itself(
        self, shards: list[Path], shard_config: MakeConfig, encoder: PromptEncoder, lost: bool
    ) -> None:
        cfg = shard_config()
        sent = prepare_datasets(cfg.datasets)
        assert sent["wide"].is_here()
        if lost:
            shutil.rmtree(sent["wide"].folder)
        else:
            write_shard(shards[0], numbered(0, 5))
            prepare_datasets(cfg.datasets)
        dataset = build(cfg, encoder, "train", prepared=sent)["wide"]
        assert len(dataset) == (30 if lost else 29)
        assert dataset.sample(len(dataset) - 1, 0).answer == "caption 29"

    def test_bad_shards_are_named_while_preparing(
        self, shards: list[Path], shard_config: MakeConfig, caplog: pytest.LogCaptureFixture
    ) -> None:
        cfg = shard_config()
        shards[1].unlink()
        with pytest.raises(
            DataError, match=rf"datasets\.wide\.shards: {shards[1]}: it does not exist;.*bad_shards=skip"
        ):
            prepare_datasets(cfg.datasets)
        cfg.datasets["wide"].bad_shards = BadData.skip
        prepared = prepare_datasets(cfg.datasets)
        assert caplog.text.count(f"shard {shards[1]}") == 1
        assert prepared["wide"].missing == [shards[1]]

    def test_the_others_do_not_name_them_again(
        self, shards: list[Path], shard_config: MakeConfig, encoder: PromptEncoder, caplog: pytest.LogCaptureFixture
    ) -> None:
        cfg = shard_config()
        shards[1].unlink()
        cfg.datasets["wide"].bad_shards = BadData.skip
        prepared = prepare_datasets(cfg.datasets)
        caplog.clear()
        assert len(build(cfg, encoder, "train", prepared=prepared)["wide"]) == 24
        assert "does not exist" not in caplog.text


def test_identity_follows_content_and_prompts_only(
    shards: list[Path], shard_config: MakeConfig, encoder: PromptEncoder, tmp_path: Path
) -> None:
    first = build(shard_config(), encoder, "train")["wide"].identity()
    assert first.startswith("30 samples in 5 shards, ")
    cfg = shard_config(seed=3, num_workers=2)
    cfg.datasets["wide"].shard_index = str(tmp_path / "elsewhere")
    assert build(cfg, encoder, "train")["wide"].identity() == first
    Path(str(cfg.model.prompt_path)).write_text("<Img><ImageHere></Img> Another.\n")
    assert build(cfg, encoder, "train")["wide"].identity() != first
    write_shard(shards[0], numbered(0, 5))
    assert build(cfg, encoder, "train")["wide"].identity().startswith("29 samples")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("feature_cache", "cache", r"datasets\.wide\.feature_cache: shards cannot have one"),
        ("shards", None, r"datasets\.wide\.shards: a pattern"),
    ],
)
def test_keys_that_make_no_sense(
    shard_config: MakeConfig, encoder: PromptEncoder, key: str, value: object, message: str
) -> None:
    cfg = shard_config()
    setattr(cfg.datasets["wide"], key, value)
    with pytest.raises(ConfigError, match=message):
        build(cfg, encoder, "train")


def test_there_is_only_a_training_split(shard_config: MakeConfig, encoder: PromptEncoder) -> None:
    with pytest.raises(ConfigError, match=r"datasets\.wide: there is no split 'val'.*valid_splits: \[\]"):
        build(shard_config(), encoder, "val", train=False)


@pytest.mark.parametrize("side", [4, 40])
def test_an_image_is_prepared_as_from_a_file(
    shards: list[Path], shard_config: MakeConfig, encoder: PromptEncoder, tmp_path: Path, side: int
) -> None:
    """Small ones by Pillow, distinctly larger JPEGs the quick way: each as an instruction dataset does."""
    file = tmp_path / "image.jpg"
    Image.linear_gradient("L").resize((side, side)).convert("RGB").save(file)
    samples = numbered(0, 6)
    samples[3] = ("00003", {"jpg": file.read_bytes(), "txt": b"x"})
    write_shard(shards[0], samples)
    dataset = build(shard_config(), encoder, "train")["wide"]
    assert torch.equal(dataset.open_image(3), dataset.image_processor(file))

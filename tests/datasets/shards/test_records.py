from __future__ import annotations

import pickle
import random
from pathlib import Path

import pytest
import webdataset

from minigpt4.common.errors import DataError
from minigpt4.datasets.shards import dataset as records_module
from minigpt4.datasets.shards.dataset import ShardRecords
from minigpt4.datasets.shards.index import open_index
from tests.datasets.shards.conftest import broken_sample, numbered, picture, write_shard


def opened(shards: list[Path]) -> ShardRecords:
    index = open_index(shards, None)
    return ShardRecords(index, [path for path, entry in index.entries.items() if entry.samples])


def test_any_sample_at_any_time(shards: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_module, "OPEN_SHARDS", 2)
    records = opened(shards)
    assert len(records) == 30
    numbers = list(range(30))
    random.Random(0).shuffle(numbers)
    for number in numbers:
        sample = records.sample(number)
        assert sample.record.answers == (f"caption {number}",)
        assert sample.picture == picture(number)
        assert sample.open().getpixel((0, 0)) == (number,) * 3
        assert records[number] == sample.record
        assert records[0].answers == ("caption 0",)
        assert len(records._open) <= 2


def test_the_caption_alone(shards: list[Path]) -> None:
    records = opened(shards)
    record = records[13]
    assert (record.image_id, record.image, record.split) == ("00002/00013", "00002.tar/00013.png", "train")
    assert record.source == f"{shards[2]}, sample 00013"
    assert records[-1].answers == ("caption 29",)
    assert [record.answers[0] for record in records[4:8]] == [f"caption {n}" for n in range(4, 8)]
    with pytest.raises(IndexError):
        records[30]


def test_the_same_samples_as_webdataset_reads(shards: list[Path]) -> None:
    streamed = webdataset.WebDataset([str(path) for path in shards], shardshuffle=False)
    expected = [(sample["png"], sample["txt"].decode()) for sample in streamed]
    records = opened(shards)
    ours = [(records.sample(number).picture, records[number].answers[0]) for number in range(len(records))]
    assert ours == expected


def test_captions_in_json_and_long_names(tmp_path: Path) -> None:
    key = "folder/" + "k" * 120
    path = write_shard(
        tmp_path / "a.tar", [(key, {"jpg": picture(1, "JPEG"), "json": b'{"caption": " \\u00e9t\\u00e9 "}'})]
    )
    records = opened([path])
    assert records[0].answers == ("été",)
    assert records[0].image_id == f"a/{key}"


def test_workers_open_the_files_themselves(shards: list[Path]) -> None:
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
    ],
)
def test_a_bad_caption_names_shard_and_sample(shards: list[Path], members: dict[str, bytes], message: str) -> None:
    samples = numbered(6, 6)
    samples[2] = ("00008", {"png": picture(8), **members})
    write_shard(shards[1], samples)
    with pytest.raises(DataError) as caught:
        opened(shards).sample(8)
    assert str(caught.value).startswith(f"{shards[1]}, {message}")


def test_a_bad_picture_names_shard_and_sample(shards: list[Path]) -> None:
    samples = numbered(6, 6)
    samples[2] = ("00008", {"png": b"no picture", "txt": b"x"})
    write_shard(shards[1], samples)
    sample = opened(shards).sample(8)
    with pytest.raises(DataError, match=rf"image 00008\.png in {shards[1]} cannot be read"):
        sample.open()


def test_a_shard_that_changes_during_a_run(shards: list[Path]) -> None:
    records = opened(shards)
    for content in (shards[0].read_bytes()[512:], b""):
        shards[1].write_bytes(content)
        with pytest.raises(DataError, match=rf"shard {shards[1]} is not what it was when it was indexed"):
            records.sample(9)
    broken_sample(shards[1], 3, png=picture(9)[:-1])  # all else stays where it was
    with pytest.raises(DataError, match="another member than when it was indexed"):
        records.sample(9)
    shards[2].unlink()
    with pytest.raises(DataError, match=rf"shard {shards[2]} cannot be read"):
        records.sample(14)

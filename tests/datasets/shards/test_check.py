from __future__ import annotations

from pathlib import Path

import pytest

from minigpt4.datasets.check import main
from tests.datasets.shards.conftest import broken_sample, numbered, write_shard


@pytest.fixture
def card(shards: list[Path], tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(f"builder: webdataset\nshards: '{shards[0].parent}/{{00000..00004}}.tar'\n")
    return str(path)


def test_good_shards(card: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([card]) == 0
    out = capsys.readouterr().out
    assert "mine: 30 samples in 5 shards (train 30)" in out
    assert "answers: 30, 2 to 2 words long, 2 in the middle" in out
    assert "example: 00000.tar/00000.png | answers: caption 0" in out
    assert "bad rows: none" in out


def test_bad_shards_and_samples_are_named(card: str, shards: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    shards[0].unlink()
    broken_sample(shards[1], 2, png=b"no picture")
    broken_sample(shards[2], 5, txt=b"")
    shards[3].write_bytes(shards[3].read_bytes()[:-12_000])
    write_shard(shards[4], [*numbered(24, 3), ("x", {"png": b"x"}), ("y", {"txt": b"y"})])
    assert main([card]) == 1
    out = capsys.readouterr().out
    assert f"{shards[0]}: it does not exist" in out
    assert f"image 00008.png in {shards[1]} cannot be read" in out
    assert f"{shards[2]}, sample 00017: the caption in 00017.txt is empty" in out
    assert f"{shards[3]}: truncated" in out
    assert f"warning: {shards[4]}: 1 pictures without a caption are left out" in out
    assert f"warning: {shards[4]}: 1 captions without a picture are left out" in out
    assert "bad rows: 4" in out


def test_without_pictures_only_the_index_is_made(
    card: str, shards: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    broken_sample(shards[1], 2, png=b"no picture")
    assert main([card, "--no-images"]) == 0
    out = capsys.readouterr().out
    assert "mine: 30 samples in 5 shards" in out and "answers:" not in out
    assert (shards[0].parent / "minigpt4_index" / "shards.json").is_file()


def test_a_shipped_card_without_its_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cc_sbu", "--options", f"paths.data_root={tmp_path}"]) == 1
    out = capsys.readouterr().out
    assert "cc_sbu: 0 samples in 0 shards" in out
    assert f"{tmp_path}/cc_sbu/cc_sbu_dataset/00000.tar: it does not exist" in out
    assert "... and 1,236 more" in out

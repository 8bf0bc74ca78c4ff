"""Shards on a server, of fsspec's file systems and of commands, read as if they were here."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from minigpt4.common.errors import ConfigError, DataError, RemoteDataError
from minigpt4.common.schema import BadData, Config
from minigpt4.conversation.template import PromptEncoder
from minigpt4.datasets.builders import prepare_datasets
from minigpt4.datasets.shards import remote as remote_module
from minigpt4.datasets.shards.remote import RemoteShards
from tests.datasets.conftest import build
from tests.datasets.shards.conftest import broken_sample, encoded_image, make_shards, numbered, write_shard
from tests.file_server import Server, serving

MakeConfig = Callable[..., Config]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server of the shards in `tmp_path`."""
    monkeypatch.setattr(remote_module, "FIRST_WAIT", 0.0)
    with serving(tmp_path) as server:
        yield server


@pytest.fixture
def config(shards: list[Path], shard_config: MakeConfig, tmp_path: Path, server: Server) -> Config:
    """The dataset `wide` of five shards, on the server."""
    cfg = shard_config()
    del cfg.datasets["narrow"]
    cfg.datasets["wide"].shards = f"{server.url}/wide/{{00000..00004}}.tar"
    cfg.datasets["wide"].shard_cache = str(tmp_path / "copies")
    return cfg


def test_samples_are_those_of_the_disk(
    config: Config, shard_config: MakeConfig, encoder: PromptEncoder, server: Server
) -> None:
    here, there = build(shard_config(), encoder, "train")["wide"], build(config, encoder, "train")["wide"]
    assert there.identity() == here.identity()
    for number in range(30):
        assert there[number].encoded == here[number].encoded and there[number].image_id == here[number].image_id
        assert (there[number].images[0] == here[number].images[0]).all()
    assert sorted(server.gets()) == [f"/wide/0000{n}.tar" for n in range(5)]
    build(config, encoder, "train")["wide"][7]
    assert len(server.gets()) == 5, "the copies are kept"


def test_few_copies_are_kept_where_there_is_little_room(
    config: Config, encoder: PromptEncoder, shards: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    size = shards[0].stat().st_size
    own = tmp_path / "copies" / "photos" / "mine.tar"
    own.parent.mkdir(parents=True)
    own.write_bytes(bytes(3 * size))
    config.datasets["wide"].shard_cache_gb = 2.5 * size / 1e9
    config.datasets["wide"].shuffle_shards = 3
    with caplog.at_level(logging.WARNING):
        dataset = build(config, encoder, "train")["wide"]
    assert "the 3 shards that are shuffled together" in caplog.text
    first = [dataset[number].answer for number in range(30)]
    dataset.records._open.clear()
    again = build(config, encoder, "train")["wide"]
    assert [again[number].answer for number in range(30)] == first == [f"caption {n}" for n in range(30)]
    own.unlink()  # what is no copy was left alone
    assert len(list((tmp_path / "copies").glob("*/*.tar"))) == 2


def test_a_shard_that_changed_is_copied_and_indexed_again(
    config: Config, encoder: PromptEncoder, shards: list[Path], server: Server
) -> None:
    assert len(build(config, encoder, "train")["wide"]) == 30
    write_shard(shards[1], numbered(6, 4))
    os.utime(shards[1], (0, 0))
    dataset = build(config, encoder, "train")["wide"]
    assert len(dataset) == 28 and dataset[9].answer == "caption 9" and dataset[10].answer == "caption 12"
    assert server.gets().count("/wide/00001.tar") == 2 and len(server.gets()) == 6
    size = shards[2].stat().st_size
    write_shard(shards[2], numbered(12, 6, "new "))  # as large as before: the time of change tells
    os.utime(shards[2], (0, 0))
    assert shards[2].stat().st_size == size
    assert build(config, encoder, "train")["wide"][10].answer == "new caption 12"


def test_a_shard_that_changed_in_size_during_the_run_ends_it(
    config: Config, encoder: PromptEncoder, shards: list[Path], tmp_path: Path
) -> None:
    dataset = build(config, encoder, "train")["wide"]
    for copy in (tmp_path / "copies").glob("*/*.tar"):
        copy.unlink()
    write_shard(shards[1], numbered(6, 60))
    with pytest.raises(RemoteDataError, match=r"00001\.tar has .* bytes, .* are expected; start again"):
        dataset.sample(6, 0)


def test_a_server_that_fails_now_and_then(config: Config, encoder: PromptEncoder, server: Server) -> None:
    server.failures["/wide/00002.tar"] = remote_module.ATTEMPTS - 1
    assert build(config, encoder, "train")["wide"][13].answer == "caption 13"
    server.head_status = 405  # HEAD is not allowed: the headers of GET say the same
    assert len(build(config, encoder, "train")["wide"]) == 30


def test_a_shard_that_cannot_be_reached_ends_the_run_and_is_not_replaced(
    config: Config, encoder: PromptEncoder, server: Server, tmp_path: Path
) -> None:
    dataset = build(config, encoder, "train")["wide"]
    for copy in (tmp_path / "copies").glob("*/*.tar"):
        copy.unlink()
    server.failures["/wide/00000.tar"] = 1000
    with pytest.raises(RemoteDataError, match=r"00000\.tar cannot be read \(HTTP 503\), 4 times in a row"):
        dataset.sample(0, 0)
    server.failures.clear()
    assert dataset.sample(0, 0).answer == "caption 0"


@pytest.mark.parametrize("lengths", [True, False])
def test_an_answer_that_breaks_off_is_asked_for_again(
    lengths: bool, config: Config, encoder: PromptEncoder, server: Server, tmp_path: Path
) -> None:
    """Also where the server never says how long it is, so that only the tar's end tells."""
    server.lengths = lengths
    server.cuts["/wide/00001.tar"] = remote_module.ATTEMPTS - 1
    dataset = build(config, encoder, "train")["wide"]
    assert [dataset[number].answer for number in range(30)] == [f"caption {n}" for n in range(30)]
    assert server.gets().count("/wide/00001.tar") == remote_module.ATTEMPTS
    dataset.records._open.clear()
    for copy in (tmp_path / "copies").glob("*/*.tar"):
        copy.unlink()
    server.cuts["/wide/00001.tar"] = 1000
    with pytest.raises(RemoteDataError, match=r"00001\.tar cannot be read \(.*\), 4 times in a row"):
        dataset.sample(6, 0)
    with pytest.raises(RemoteDataError, match=r"00001\.tar cannot be read"):  # no half of it is there now
        dataset.sample(7, 0)


def test_a_change_that_a_pipe_cannot_tell_ends_the_run(
    config: Config, encoder: PromptEncoder, shards: list[Path], tmp_path: Path
) -> None:
    config.datasets["wide"].shards = f"pipe:cat {shards[0].parent}/{{00000..00004}}.tar"
    build(config, encoder, "train")
    for copy in (tmp_path / "copies").glob("*/*.tar"):
        copy.unlink()
    broken_sample(shards[1], 0, png=encoded_image(1) + bytes(600))
    dataset = build(config, encoder, "train")["wide"]
    assert dataset.sample(5, 0).answer == "caption 5"
    with pytest.raises(RemoteDataError, match=r"pipe:cat .*00001\.tar, copied to .* has changed since it was indexed"):
        dataset.sample(6, 0)
    shutil.rmtree(tmp_path / "copies" / "minigpt4_index")
    assert build(config, encoder, "train")["wide"].sample(6, 0).answer == "caption 6"


def test_a_full_disk_ends_the_run_and_nothing_takes_a_samples_place(
    config: Config, encoder: PromptEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = build(config, encoder, "train")["wide"]
    (gone,) = (tmp_path / "copies").glob("*/00000.tar")
    gone.unlink()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(remote_module, "write_atomically", full)
    with pytest.raises(ConfigError, match=r"copy of http.*00000\.tar cannot be written to .*: No space left"):
        dataset.sample(0, 0)


def test_missing_shards_are_named_by_their_url(config: Config, encoder: PromptEncoder, shards: list[Path]) -> None:
    shards[3].unlink()
    with pytest.raises(DataError, match=r"/wide/00003\.tar cannot be read \(HTTP 404\).*bad_shards=skip"):
        prepare_datasets(config.datasets)
    config.datasets["wide"].bad_shards = BadData.skip
    assert len(build(config, encoder, "train")["wide"]) == 24


def test_processes_that_need_a_shard_at_once_copy_it_once(shards: list[Path], server: Server, tmp_path: Path) -> None:
    remote = RemoteShards(tmp_path / "copies")
    path = remote.add(f"{server.url}/wide/00000.tar")
    size, _ = remote.stat(path)
    with ThreadPoolExecutor(4) as pool:
        descriptors = list(pool.map(lambda _: remote.open(path, size), range(4)))
    assert all(os.pread(descriptor, 1 << 20, 0) == shards[0].read_bytes() for descriptor in descriptors)
    assert server.gets() == ["/wide/00000.tar"]
    list(map(os.close, descriptors))


@pytest.mark.parametrize("kind", ["memory", "pipe"])
def test_other_places(kind: str, config: Config, encoder: PromptEncoder, shards: list[Path]) -> None:
    if kind == "memory":
        for path in shards:
            fsspec.filesystem("memory").pipe_file(f"/{path.name}", path.read_bytes())
        config.datasets["wide"].shards = "memory://{00000..00004}.tar"
    else:
        config.datasets["wide"].shards = f"pipe:cat {shards[0].parent}/{{00000..00004}}.tar"
    dataset = build(config, encoder, "train")["wide"]
    assert [dataset[number].answer for number in range(30)] == [f"caption {n}" for n in range(30)]


def test_what_cannot_be_opened_says_why(config: Config, tmp_path: Path) -> None:
    cases = {
        "pipe:echo no such shard >&2; exit 3": (DataError, "status 3: no such shard"),
        "nonsense://a/0.tar": (ConfigError, "nonsense://a/0.tar cannot be opened"),
        "memory://absent.tar": (DataError, "memory://absent.tar cannot be reached"),
        "http://127.0.0.1:1/0.tar": (DataError, "http://127.0.0.1:1/0.tar cannot be reached"),
    }
    for pattern, (kind, message) in cases.items():
        config.datasets["wide"].shards = pattern
        with pytest.raises(kind, match=message):
            prepare_datasets(config.datasets)


def test_a_mixture_with_shards_here(config: Config, encoder: PromptEncoder, tmp_path: Path) -> None:
    make_shards(tmp_path / "more", 1, "more ")
    config.datasets["wide"].shards = [config.datasets["wide"].shards, str(tmp_path / "more" / "*.tar")]
    dataset = build(config, encoder, "train")["wide"]
    assert len(dataset) == 36 and dataset[35].answer == "more caption 5"

from __future__ import annotations

from pathlib import Path

import pytest

from minigpt4.common.errors import ConfigError
from minigpt4.datasets.shards.index import shard_paths


def test_brace_ranges_lists_and_wildcards(tmp_path: Path) -> None:
    for name in ("b.tar", "a.tar", "c.txt"):
        (tmp_path / name).touch()
    found = shard_paths(
        "laion", [f"{tmp_path}/{{008..011}}.tar", f"{tmp_path}/{{x,y}}/{{0..1}}.tar", f"{tmp_path}/*.tar"]
    )
    names = [str(path.relative_to(tmp_path)) for path in found]
    assert names == [
        "008.tar", "009.tar", "010.tar", "011.tar", "x/0.tar", "x/1.tar", "y/0.tar", "y/1.tar", "a.tar", "b.tar",
    ]  # fmt: skip


@pytest.mark.parametrize("stream", ["pipe:cat x.tar", "https://a.org/{0..3}.tar", "s3://bucket/0.tar"])
def test_streams_are_refused(stream: str) -> None:
    with pytest.raises(ConfigError, match=r"datasets\.laion\.shards: '.*' is a stream.*download_shards\.py"):
        shard_paths("laion", stream)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (None, "a pattern such as"),
        ([], "a pattern such as"),
        ([3], "a pattern such as"),
        ("{0..3.tar", "unbalanced braces"),
        ("nowhere/*.tar", r"no file matches 'nowhere/\*\.tar'.*MINIGPT4_DATA"),
        (["0.tar", "{0..1}.tar"], "0.tar is named twice"),
    ],
)
def test_mistakes_name_the_key(patterns, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^datasets\.laion\.shards: .*{message}"):
        shard_paths("laion", patterns)

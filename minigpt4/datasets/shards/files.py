"""Patterns such as `{00000..01255}.tar` -> paths of shards."""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from minigpt4.common.errors import ConfigError

STREAM = re.compile(r"^(pipe:|[a-z][a-z0-9+.-]*://)", re.IGNORECASE)
WILDCARD = re.compile(r"[*?\[]")
DATA_VARIABLE = "MINIGPT4_DATA"


def shard_paths(name: str, patterns: str | Sequence[str] | None) -> list[Path]:
    """The shards that a dataset's patterns stand for, whether they exist or not.

    Args:
        name: The dataset's key in the configuration, for messages.
        patterns: One or several; `{00000..01255}` and `{a,b}` are expanded, `*` and `?` matched against the disk.

    Raises:
        ConfigError: None is given, one is a stream, matches nothing, or names a shard that another one names too.
    """
    key = f"datasets.{name}.shards"
    listed = [patterns] if isinstance(patterns, str) else list(patterns or [])
    if not listed or not all(isinstance(pattern, str) and pattern for pattern in listed):
        raise ConfigError(f"{key}: a pattern such as 'data/{{00000..00099}}.tar' is expected, or a list of them")
    paths = [path for pattern in listed for path in _expanded(key, pattern)]
    repeated = [path for path, count in Counter(paths).items() if count > 1]
    if repeated:
        raise ConfigError(f"{key}: {min(repeated)} is named twice; its samples would count double")
    return paths


def _expanded(key: str, pattern: str) -> list[Path]:
    if STREAM.match(pattern):
        raise ConfigError(
            f"{key}: '{pattern}' is a stream; an exact order and resume need shards that can be read at any place: "
            "copy them to a disk (dataset/download_shards.py), or mount the store that holds them"
        )
    from braceexpand import braceexpand

    try:
        expanded = list(braceexpand(pattern))
    except ValueError as error:
        raise ConfigError(f"{key}: '{pattern}' has unbalanced braces; write {{00000..00099}}.tar") from error
    paths: list[Path] = []
    for part in expanded:
        found = sorted(glob.glob(part)) if WILDCARD.search(part) else [part]
        if not found:
            raise ConfigError(
                f"{key}: no file matches '{part}'; set the pattern by --options {key}=PATTERN, or the environment "
                f"variable {DATA_VARIABLE} to the folder that holds the data"
            )
        paths.extend(map(Path, found))
    return paths

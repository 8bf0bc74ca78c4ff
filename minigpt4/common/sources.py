"""Files that a run needs: which are missing, where they come from, and language models named as on the hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml

from minigpt4.common.errors import ConfigError, one_line
from minigpt4.common.files import (
    CONFIGS,
    WEIGHTS_VARIABLE,
    missing_file,
    near_path,
    read_json,
    root_variable,
)

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""OWNER/NAME of a model on the hub."""
UNUSED = ["*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.ot", "*.tflite", "onnx/*", "openvino/*", "original/*"]
"""Files of a model on the hub in formats that are not read here."""
PICKLES = ["*.bin", "*.pth", "*.pt"]
"""Files of weights that are not needed where there are safetensors."""
DESCRIPTION = ["*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt"]
"""Files of a model on the hub that hold no weights: its configuration, tokenizer and chat template."""
REHEARSAL = "A rehearsal without the weights: --options model.arch=minigpt4 model.model_type=tiny"
"""Last line where weights are missing."""
PATIENCE = 10
"""Seconds that the hub may take to answer."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a file comes from.

    Attributes:
        path: how its path ends.
        get: command, or page, that brings it; `{path}` and `{folder}` stand for the path and its folder.
        size: its size, where it is known.
        licence: licence of weights, where it is known.
    """

    path: str
    get: str
    size: str = ""
    licence: str = ""

    def command(self, path: str | Path) -> str:
        """What brings the file to `path`, and its size."""
        size = f" [{self.size}]" if self.size else ""
        return self.get.format(path=path, folder=Path(path).parent) + size


@lru_cache(maxsize=1)
def sources() -> tuple[Source, ...]:
    """The table `configs/sources.yaml`."""
    rows = yaml.safe_load((CONFIGS / "sources.yaml").read_text(encoding="utf-8"))
    return tuple(Source(**row) for row in rows)


def source_of(path: str | Path) -> Source | None:
    """The source whose path is the longest end of `path`; None: there is none."""
    ends = [source for source in sources() if f"/{path}".endswith(f"/{source.path}")]
    return max(ends, key=lambda source: len(source.path), default=None)


def missing_files(files: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The (key, path) of `files` that do not exist here, nor are language models named as on the hub."""
    absent = [(key, path) for key, path in files if not os.path.exists(path)]
    return [(key, path) for key, path in absent if key != "model.llama_model" or not is_hub_name(path)]


def refuse_missing(missing: Sequence[tuple[str, str]]) -> None:
    """Download the language models among `missing` that are named as on the hub; refuse to continue without the others.

    Args:
        missing: (key, path) of files and folders that do not exist.

    Raises:
        ConfigError: The message names all of them, each with what brings it and its size.
    """
    local = missing_files(missing)
    if len(local) == 1:
        raise ConfigError(describe_missing(*local[0]))
    if local:
        how = "name them by these arguments" if local[0][0].startswith("-") else "set --options KEY=PATH"
        listed = "\n".join(f"  {_line(key, path)}" for key, path in local)
        weights = any(key == "model.llama_model" and source_of(path) for key, path in local)
        variables = dict.fromkeys(filter(None, (root_variable(path, key) for key, path in local)))
        roots = f", or set {' and '.join(variables)} in the environment to their folders" if variables else ""
        raise ConfigError(
            f"{len(local)} files and folders are missing (the current folder is {Path.cwd()}):\n{listed}\n"
            f"Where they are elsewhere, {how}{roots}." + (f"\n{REHEARSAL}" if weights else "")
        )
    for key, path in missing:
        from_hub(path, key)


def describe_missing(key: str, path: str) -> str:
    """One missing file, for a message: what it is, what brings it, and how to name another."""
    source = source_of(path)
    brought = f". To get it: {source.command(path)}" if source else ""
    return missing_file(path, key) + brought


def _line(key: str, path: str) -> str:
    source = source_of(path)
    return f"{key}: {path}" + (f"\n    {source.command(path)}" if source else near_path(path))


def is_hub_name(path: str) -> bool:
    """Whether a path that does not exist has the form OWNER/NAME, and no folder or known file is meant by it."""
    owner = path.partition("/")[0]
    return (
        HUB_NAME.fullmatch(path) is not None
        and not os.path.exists(path)
        and not os.path.exists(owner)
        and owner != os.environ.get(WEIGHTS_VARIABLE, "weights")
        and source_of(path) is None
        and not near_path(path)
    )


def from_hub(name: str, key: str, *, weights: bool = True) -> Path:
    """The folder of a model of the hub, downloaded where it is not in the hub's cache yet.

    Args:
        name: OWNER/NAME.
        key: the setting that names it, for messages.
        weights: download its weights too; without them it is a few MB.

    Raises:
        ConfigError: It cannot be downloaded; the message has the command that does so where the network allows.
    """
    from huggingface_hub import HfApi, snapshot_download

    if cached := in_cache(name, weights):
        return cached
    try:
        if not weights:
            return Path(snapshot_download(name, allow_patterns=DESCRIPTION, ignore_patterns=UNUSED))
        listed = HfApi().model_info(name, timeout=PATIENCE).siblings or []
        is_safe = any(file.rfilename.endswith(".safetensors") for file in listed)
        return Path(snapshot_download(name, ignore_patterns=UNUSED + (PICKLES if is_safe else [])))
    except Exception as error:  # what the network raises has many types
        folder = Path(os.environ.get(WEIGHTS_VARIABLE, "weights"), name.partition("/")[2])
        raise ConfigError(
            f"{missing_file(name, key)}. As a model of the Hugging Face hub it cannot be downloaded either "
            f"({one_line(error, 150)}); where the network allows, run: hf download {name} --local-dir {folder}, and "
            f"set {key}={folder}"
        ) from error


def in_cache(name: str, weights: bool) -> Path | None:
    """The folder of a model that the hub's cache holds completely; None: it does not."""
    from huggingface_hub import snapshot_download

    # Files that were never wanted count as missing there, unless they are named again.
    kinds = [(None, UNUSED + PICKLES), (None, UNUSED)] if weights else [(DESCRIPTION, UNUSED)]
    for allowed, ignored in kinds:
        with suppress(Exception):  # it is not in the cache, or not all of it
            folder = Path(
                snapshot_download(name, local_files_only=True, allow_patterns=allowed, ignore_patterns=ignored)
            )
            if (folder / "config.json").is_file() and (not weights or _has_weights(folder)):
                return folder
    return None


def _has_weights(folder: Path) -> bool:
    """Whether a folder of the cache holds weights, all of their shards: `minigpt4 plan` downloads none."""
    indexes = [read_json(file)["weight_map"].values() for file in folder.glob("*.index.json")]
    if indexes:
        return any(all((folder / shard).is_file() for shard in shards) for shards in indexes)
    return any(next(folder.glob(kind), None) for kind in ["*.safetensors", *PICKLES])

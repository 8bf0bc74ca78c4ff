"""The frozen encoders' output for a dataset's images, computed once and kept on disk.

The image transform has no randomness and the encoders are frozen, so their output never changes: 32 x 768 numbers in
float16 are 48 KB an image (the 256 x 5,632 of MiniGPT-v2 2.9 MB). A cache is a folder of safetensors shards, each
written atomically; it carries the identity of everything its numbers depend on, and is refused when one of these has
changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minigpt4.common.checkpoint import frozen_identity
from minigpt4.common.errors import DataError
from minigpt4.common.files import read_json, write_atomically, write_json, writing
from minigpt4.common.schema import ModelConfig
from minigpt4.processors.image import CLIP, ChannelStatistics

TENSOR = "queries"
"""Name of the tensor in each shard."""
IDENTITY = "identity.json"
TRANSFORM = "square, bicubic in whole grey levels, transparency on white"
"""Identifies the image transform; change it with the transform."""


def cache_identity(cfg: ModelConfig, statistics: ChannelStatistics, dtype: torch.dtype) -> dict[str, str]:
    """Everything that cached numbers depend on.

    Args:
        cfg: the model's configuration; the encoders' files are fingerprinted, not loaded.
        statistics: what images are normalised by.
        dtype: number format that the encoders compute in.
    """
    sizes = cfg.image_encoder_sizes()
    files = {key: frozen_identity(path, sizes) for key, path in cfg.image_encoder_files().items()}
    normalised = "CLIP statistics" if statistics == CLIP else str(statistics)
    computed = {
        "transform": f"{TRANSFORM}, {normalised}",
        "image_size": str(cfg.image_size),
        "dtype": str(dtype).removeprefix("torch."),
    }
    return sizes | files | computed


def check_identity(folder: Path, identity: Mapping[str, str]) -> None:
    """Refuse a cache that was computed with something else; a new one is given this identity.

    Raises:
        DataError: The cache cannot be read or written, or was computed with something else; the message names what
            differs, with both values.
    """
    file = folder / IDENTITY
    if not os.path.exists(file):  # unlike pathlib, also below a folder that cannot be read
        with writing(folder):
            write_json(file, dict(identity))
        return
    try:
        known = read_json(file)
        if not isinstance(known, dict):
            raise DataError(f"{file}: an object is expected, found {type(known).__name__}")
    except DataError as error:
        raise DataError(
            f"the feature cache {folder} is damaged ({error}); delete the folder to compute it again"
        ) from error
    changed = [
        f"{key} was {known.get(key)}, is {identity.get(key)}"
        for key in sorted({*known, *identity})
        if known.get(key) != identity.get(key)
    ]
    if changed:
        raise DataError(
            f"the feature cache {folder} is stale: {'; '.join(changed)}; name another folder in "
            "datasets.NAME.feature_cache, or delete this one to compute it again"
        )


class FeatureCache:
    """A dataset's cached features, memory-mapped.

    Args:
        folder: folder that `write_shard` filled.
        identity: what the numbers must have been computed with.

    Raises:
        DataError: The cache was computed with something else, or a shard is broken.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, str]) -> None:
        self.folder = Path(folder)
        check_identity(self.folder, identity)
        self._rows: dict[str, tuple[Path, int, int | None]] = {}
        for shard in sorted(self.folder.glob("*.safetensors")):
            for row, (name, checksum) in enumerate(_names(shard)):
                self._rows[name] = (shard, row, checksum)
        self._shards: dict[Path, Any] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, name: str) -> bool:
        return name in self._rows

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_shards": {}}  # a loader worker maps the files itself

    def get(self, name: str) -> Tensor:
        """The features of an image, (Q, width of the queries) float16.

        Raises:
            DataError: The cache does not hold it, because it could not be read when the cache was filled; or the
                shard is damaged.
        """
        if name not in self._rows:
            raise DataError(f"image {name} is not in the feature cache {self.folder}; it could not be read")
        shard, row, checksum = self._rows[name]
        if shard not in self._shards:
            self._shards[shard] = _open(shard).get_slice(TENSOR)
        features: Tensor = self._shards[shard][row]
        if checksum is not None and checksum != _checksum(name, features):
            raise _broken(shard, f"wrong checksum of the features of {name}")
        return features


def write_shard(folder: Path, names: Sequence[str], features: Iterable[Tensor]) -> Path:
    """Add a shard with the features of some images.

    Args:
        folder: folder of the cache.
        names: names of the images, each once.
        features: (Q, width) each, in the order of the names.

    Raises:
        DataError: It cannot be written.
    """
    # A hash of the names, so that no two processes choose the same file for different images.
    shard = folder / f"{hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()[:16]}.safetensors"
    rows = torch.stack([feature.to(torch.float16) for feature in features])
    tensors = {TENSOR: rows}
    checksums = [_checksum(name, row) for name, row in zip(names, rows, strict=True)]
    metadata = {"names": json.dumps(list(names)), "crc32": json.dumps(checksums)}
    with writing(shard):
        write_atomically(shard, lambda temporary: save_file(tensors, temporary, metadata=metadata))
    return shard


def _names(shard: Path) -> list[tuple[str, int | None]]:
    """(name, checksum) of a shard's images, a row of its tensor each; older shards have no checksums.

    Raises:
        DataError: It is broken.
    """
    file = _open(shard)
    try:
        names = json.loads(file.metadata()["names"])
        checksums = json.loads(file.metadata().get("crc32", "null"))
        rows = file.get_slice(TENSOR).get_shape()[0]
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise _broken(shard, error) from error
    if not isinstance(names, list) or len(names) != rows or not all(isinstance(name, str) for name in names):
        raise _broken(shard, f"the names of {rows} images are expected")
    if checksums is None:
        return [(name, None) for name in names]
    if not isinstance(checksums, list) or len(checksums) != rows or not all(type(c) is int for c in checksums):
        raise _broken(shard, f"the checksums of {rows} images are expected")
    return list(zip(names, checksums, strict=True))


def _checksum(name: str, features: Tensor) -> int:
    """CRC-32 of an image's name and features."""
    return zlib.crc32(features.numpy().tobytes(), zlib.crc32(name.encode("utf-8", errors="surrogatepass")))


def _open(shard: Path) -> Any:
    try:
        return safe_open(shard, framework="pt")
    except (SafetensorError, OSError) as error:
        raise _broken(shard, error) from error


def _broken(shard: Path, reason: object) -> DataError:
    return DataError(f"feature cache {shard} is broken ({reason}); delete it to compute it again")

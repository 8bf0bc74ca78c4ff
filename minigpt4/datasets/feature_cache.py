"""What the frozen encoders make of a dataset's pictures, computed once and kept on disk.

The image transform has no randomness and the encoders are frozen, so their output never changes: 32 x 768 numbers in
float16 are 48 KB a picture. A cache is a folder of safetensors shards, each written whole or not at all; it carries the
identity of everything its numbers depend on, and is refused, not used, where one of these has changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minigpt4.common.checkpoint import fingerprint
from minigpt4.common.errors import DataError
from minigpt4.common.files import write_atomically
from minigpt4.common.schema import ModelConfig

TENSOR = "queries"
IDENTITY = "identity.json"
TRANSFORM = "square, bicubic in whole grey levels, transparency on white, CLIP statistics"
"""Names the image transform; to be changed with it."""


def cache_identity(cfg: ModelConfig, image_size: int, dtype: torch.dtype) -> dict[str, str]:
    """Everything that cached numbers depend on.

    Args:
        cfg: The model; the files of its frozen encoders are looked at, not loaded.
        image_size: Side of the pictures in pixels.
        dtype: Number format that the encoders compute in.
    """
    files = {"vit_weights": cfg.vit_weights, "q_former_model": cfg.q_former_model}
    return {
        "transform": TRANSFORM,
        "image_size": str(image_size),
        "dtype": str(dtype).removeprefix("torch."),
        "vit_model": cfg.vit_model,
        "vit_blocks": str(cfg.vit_blocks),
        "vit_args": json.dumps(cfg.vit_args, sort_keys=True),
        "q_former_args": json.dumps(cfg.q_former_args, sort_keys=True),
        "num_query_token": str(cfg.num_query_token),
    } | {name: fingerprint(path) if path else "random" for name, path in files.items()}


class FeatureCache:
    """A dataset's cached features, memory-mapped.

    Args:
        folder: Of the cache; made by `write_shard`.
        identity: What the numbers must have been computed with.

    Raises:
        DataError: The cache was computed with something else, or a shard is broken.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, str]) -> None:
        self.folder = Path(folder)
        check_identity(self.folder, identity)
        self._places: dict[str, tuple[Path, int]] = {}
        for shard in sorted(self.folder.glob("*.safetensors")):
            for row, name in enumerate(json.loads(_open(shard).metadata()["names"])):
                self._places[name] = (shard, row)
        self._shards: dict[Path, Any] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_shards": {}}  # a loader's worker maps the files itself

    def get(self, name: str) -> Tensor:
        """The features of a picture, (Q, width of the Q-Former) float16.

        Raises:
            DataError: The cache does not hold it: it could not be read when the cache was made.
        """
        if name not in self._places:
            raise DataError(f"picture {name} is not in the feature cache {self.folder}; it could not be read")
        shard, row = self._places[name]
        if shard not in self._shards:
            self._shards[shard] = _open(shard).get_slice(TENSOR)
        features: Tensor = self._shards[shard][row]
        return features


def _open(shard: Path) -> Any:
    try:
        return safe_open(shard, framework="pt")
    except (SafetensorError, OSError) as error:
        raise DataError(f"feature cache {shard} is broken ({error}); delete it, and it is computed again") from error


def check_identity(folder: Path, identity: Mapping[str, str]) -> None:
    """Refuse a cache that was computed with something else; one without an identity is given this.

    Raises:
        DataError: The message names what differs, with both values.
    """
    file = folder / IDENTITY
    if not file.is_file():
        text = json.dumps(dict(identity), indent=1)
        write_atomically(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        return
    known = json.loads(file.read_text(encoding="utf-8"))
    changed = [
        f"{key} was {known.get(key)}, is {identity.get(key)}"
        for key in sorted({*known, *identity})
        if known.get(key) != identity.get(key)
    ]
    if changed:
        raise DataError(
            f"the feature cache {folder} is stale: {'; '.join(changed)}; name another folder in "
            "datasets.NAME.feature_cache, or delete this one, and it is computed anew"
        )


def write_shard(folder: Path, names: Sequence[str], features: Iterable[Tensor]) -> Path:
    """Add a shard with the features of some pictures.

    Args:
        folder: Of the cache.
        names: The pictures, each once.
        features: (Q, width) each, in the order of the names.
    """
    # A file name that two processes never choose for different pictures.
    shard = folder / f"{hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()[:16]}.safetensors"
    tensors = {TENSOR: torch.stack([feature.to(torch.float16) for feature in features])}
    metadata = {"names": json.dumps(list(names))}
    write_atomically(shard, lambda temporary: save_file(tensors, temporary, metadata=metadata))
    return shard

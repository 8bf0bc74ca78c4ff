"""Short identities of large files, taken from samples of their bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

BLOCK_BYTES = 65_536
NUM_BLOCKS = 16
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
INDEX = "model.safetensors.index.json"
CONVERTED_FROM = "converted_from"
"""Key in the metadata of a folder's safetensors index: the fingerprint of the files that they were made of."""


def fingerprint(path: str | Path) -> str:
    """16 hex digits that tell weight files apart in milliseconds, whatever their size.

    The size and evenly spaced blocks of a file are hashed; of a folder, those of each weight file in it. A folder whose
    weights were converted keeps the identity that it had before: the tensors are the same.
    """
    target = Path(path)
    if not target.is_dir():
        return fingerprint_files([target])
    return _converted_from(target) or fingerprint_files(f for f in target.iterdir() if f.suffix in WEIGHT_SUFFIXES)


def fingerprint_files(files: Iterable[Path]) -> str:
    """The fingerprint of files taken together, whatever their order."""
    digest = hashlib.sha256()
    for file in sorted(files):
        size = file.stat().st_size
        digest.update(str(size).encode())
        with file.open("rb") as stream:
            for block in range(NUM_BLOCKS):
                stream.seek(max(0, size - BLOCK_BYTES) * block // (NUM_BLOCKS - 1))
                digest.update(stream.read(BLOCK_BYTES))
    return digest.hexdigest()[:16]


def _converted_from(folder: Path) -> str | None:
    try:
        metadata = json.loads((folder / INDEX).read_text(encoding="utf-8"))["metadata"]
        return str(metadata[CONVERTED_FROM])
    except (OSError, ValueError, KeyError, TypeError):
        return None

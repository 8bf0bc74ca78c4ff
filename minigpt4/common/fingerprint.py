"""Short identities of large files, taken from samples of their bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

BLOCK_BYTES = 65_536
NUM_BLOCKS = 16
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")


def fingerprint(path: str | Path) -> str:
    """16 hex digits that tell weight files apart in milliseconds, whatever their size.

    The size and evenly spaced blocks of a file are hashed; of a folder, those of each weight file in it.
    """
    target = Path(path)
    files = sorted(f for f in target.iterdir() if f.suffix in WEIGHT_SUFFIXES) if target.is_dir() else [target]
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(str(size).encode())
        with file.open("rb") as stream:
            for block in range(NUM_BLOCKS):
                stream.seek(max(0, size - BLOCK_BYTES) * block // (NUM_BLOCKS - 1))
                digest.update(stream.read(BLOCK_BYTES))
    return digest.hexdigest()[:16]

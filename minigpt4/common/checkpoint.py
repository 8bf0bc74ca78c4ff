"""Weight files: safe reading, atomic writing and fingerprints."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from minigpt4.common.errors import CheckpointError
from minigpt4.common.files import write_atomically

BLOCK_BYTES = 65_536
"""Size of each block of a file that `fingerprint` hashes."""
NUM_BLOCKS = 16
"""Blocks of a file that `fingerprint` hashes."""
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
"""Files of a folder that `fingerprint` hashes."""


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Save tensors and plain values atomically, readable with `weights_only=True`."""
    write_atomically(path, lambda temporary: torch.save(dict(content), temporary))


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a .pth or .safetensors file, on the CPU, memory-mapped where the format allows.

    Raises:
        CheckpointError: The file does not exist, is truncated or no checkpoint, or is a pickle that would run code.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"checkpoint {file} does not exist")
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    content = _read_torch(file)
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: a mapping of names to tensors is expected, found {type(content).__name__}")
    return content


def _read_safetensors(file: Path) -> dict[str, Any]:
    try:
        return dict(load_file(file))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is truncated or no safetensors file ({error}); copy it again") from error


def _read_torch(file: Path) -> Any:
    with file.open("rb") as stream:
        zipped = stream.read(4) == b"PK\x03\x04"
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        if re.search(r"Unsupported (global|class)", str(error), re.IGNORECASE):
            raise CheckpointError(
                f"{file} holds Python objects that would run code when loaded; it is refused. "
                "Only tensors and plain values are read: save it again as {'model': state_dict}"
            ) from error
        raise CheckpointError(f"{file} is no checkpoint (not written by torch.save); copy it again") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{file} is truncated or no checkpoint ({_first_line(error)}); copy or download it again"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def model_state(content: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a checkpoint: those of its "model" or "state_dict" if it has one, without wrappers' `module.`."""
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    state = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    while state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def fingerprint(path: str | Path) -> str:
    """16 hex digits that identify weight files, computed in milliseconds for any size.

    The size and evenly spaced blocks of a file are hashed; for a folder, those of each weight file in it.
    """
    target = Path(path)
    files = [f for f in target.iterdir() if f.suffix in WEIGHT_SUFFIXES] if target.is_dir() else [target]
    digest = hashlib.sha256()
    for file in sorted(files):
        size = file.stat().st_size
        digest.update(str(size).encode())
        with file.open("rb") as stream:
            for block in range(NUM_BLOCKS):
                stream.seek(max(0, size - BLOCK_BYTES) * block // (NUM_BLOCKS - 1))
                digest.update(stream.read(BLOCK_BYTES))
    return digest.hexdigest()[:16]

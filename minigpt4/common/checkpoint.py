"""Weight files: safe reading, atomic writing, strict loading, fingerprints, and what stands for files where weights
are random."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minigpt4.common.errors import CheckpointError, first_few, one_line
from minigpt4.common.files import write_atomically

VERIFIED_BYTES = 256 * 2**20
"""Largest .pth file whose checksums are compared: every checkpoint of a projection, published ones too. Those of the
frozen weights' files (GB) are not: they are mapped, and comparing would read every byte once more at each start."""
DIGEST = "sha256"
"""Key of the metadata of our .safetensors files: the digest of everything else in them, since the format has none."""
RANDOM_SEED = 0
"""Seed of frozen weights that no file holds."""
BLOCK_BYTES = 65_536
"""Size of each block of a file that `fingerprint` hashes."""
NUM_BLOCKS = 16
"""Blocks of a file that `fingerprint` hashes."""
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
"""Files of a folder that `fingerprint` hashes."""
USUAL_NAMES = ("model.safetensors", "pytorch_model.bin")
"""The weights in a folder of the hub, the first of these that is there."""


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Save tensors and plain values atomically, readable with `weights_only=True`."""
    write_atomically(path, lambda temporary: torch.save(dict(content), temporary))


def write_safetensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Save tensors atomically as .safetensors, with metadata and a digest that `read_checkpoint` compares.

    Files with the same content are equal, byte for byte.
    """
    state = {name: tensor.contiguous() for name, tensor in tensors.items()}
    content = {**metadata, DIGEST: _digest(state, metadata)}

    def write(temporary: Path) -> None:
        save_file(state, temporary, metadata=content)
        _sort_metadata(temporary)

    write_atomically(path, write)


def _sort_metadata(file: Path) -> None:
    """Sort the metadata of a .safetensors file, which the library writes in random order."""
    with file.open("r+b") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:  # else it was written in a shorter form, and stays as it is
            opened.seek(8)
            opened.write(text.ljust(size))


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a .pth or .safetensors file, on the CPU, memory-mapped where the format allows.

    Raises:
        CheckpointError: The file does not exist, is damaged or no checkpoint, or is a pickle that would run code.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"checkpoint {file} does not exist")
    try:
        content = _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged header or pickle can raise anything
        raise CheckpointError(
            f"{file} is truncated, damaged or no checkpoint ({one_line(error)}); copy or download it again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: a mapping of names to tensors is expected, found {type(content).__name__}")
    for name, tensor in model_state(content).items():
        if tensor.layout is not torch.strided or tensor.is_meta:
            raise CheckpointError(f"{file}: {name} is sparse or has no values; save it again as a dense tensor")
    return content


def read_projection(path: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors of a trained projection and its metadata, which are the same in both formats.

    Args:
        path: .pth or .safetensors file.

    Returns:
        Names -> tensors as `model_state`, and the metadata; published checkpoints have none.

    Raises:
        CheckpointError: As for `read_checkpoint`.
    """
    content = read_checkpoint(path)
    metadata = content.get("metadata")
    if Path(path).suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:  # has just been read
            metadata = file.metadata()
    found = metadata if isinstance(metadata, dict) else {}
    return model_state(content), {str(key): str(value) for key, value in found.items() if key != DIGEST}


def _read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(file)
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() or {}
    expected = metadata.pop(DIGEST, None)  # other writers give none
    if expected is not None and expected != _digest(tensors, metadata):
        raise CheckpointError(f"{file} is damaged (wrong checksum); copy or download it again")
    return tensors


def _digest(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """A hash of tensors, their names, shapes and formats, and of metadata."""
    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read_torch(file: Path) -> Any:
    with file.open("rb") as stream:
        zipped = stream.read(4) == b"PK\x03\x04"
    if zipped and file.stat().st_size <= VERIFIED_BYTES:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()  # torch itself compares no checksum
        if damaged is not None:
            raise CheckpointError(f"{file} is damaged (wrong checksum of {damaged}); copy or download it again")
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        if re.search(r"Unsupported (global|class)", str(error), re.IGNORECASE):
            raise CheckpointError(
                f"{file} holds Python objects that would run code when loaded; it is refused. "
                "Only tensors and plain values are read: save it again as {'model': state_dict}"
            ) from error
        raise CheckpointError(f"{file} is no checkpoint (not written by torch.save); copy it again") from error


def model_state(content: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors that have a name in a checkpoint, or in its "model" or "state_dict", without wrappers' `module.`."""
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    state = {
        name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
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


def weights_file(path: str | Path) -> Path:
    """The file of weights that a path stands for: the path itself, or that in a folder as it comes from the hub.

    Raises:
        CheckpointError: The folder has none, or several of which none has the usual name.
    """
    target = Path(path)
    if not target.is_dir():
        return target
    files = sorted(file for file in target.iterdir() if file.suffix in WEIGHT_SUFFIXES)
    usual = [target / name for name in USUAL_NAMES if target / name in files]
    if not usual and len(files) != 1:
        raise CheckpointError(
            f"{target} has {len(files)} files of weights ({', '.join(WEIGHT_SUFFIXES)}) and none of them is called "
            f"{USUAL_NAMES[0]}; name the file itself"
        )
    return (usual or files)[0]


def frozen_identity(path: str | None, settings: Mapping[str, str]) -> str:
    """Identifies a frozen part's weights: its file's fingerprint, or what its random weights are drawn from.

    Args:
        path: the file, or its folder; None: random weights.
        settings: everything that the shapes of random weights depend on.
    """
    if path:
        return fingerprint(weights_file(path))
    drawn_from = json.dumps([RANDOM_SEED, dict(settings)], sort_keys=True)
    return f"random:{hashlib.sha256(drawn_from.encode()).hexdigest()[:16]}"


@contextmanager
def seeded_weights() -> Iterator[None]:
    """Weights made on the CPU inside are drawn from RANDOM_SEED; the random state outside stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(RANDOM_SEED)
        yield


def load_strictly(
    module: nn.Module,
    state: dict[str, Tensor],
    source: str,
    *,
    dtype: torch.dtype | None,
    device: Any,
    in_float32: tuple[str, ...] = (),
) -> None:
    """Load `state` into `module`, whose parameters may be on the meta device, tensor by tensor.

    A tensor that needs no conversion is not copied: one that is mapped from a file stays mapped, and takes no memory of
    the process.

    Args:
        module: every one of its parameters must be in `state`, and nothing else.
        state: tensors by the module's own names; emptied, so that no more than one tensor is held twice.
        source: file name for messages.
        dtype: number format of floating-point tensors; None: that of `state`.
        device: device of the tensors.
        in_float32: prefixes of names that are converted to float32 instead.

    Raises:
        CheckpointError: Missing or unexpected names, or a shape that does not fit.
    """
    wanted = module.state_dict()
    missing = sorted(set(wanted) - set(state))
    unexpected = sorted(set(state) - set(wanted))
    if missing or unexpected:
        found = {"missing": missing, "unexpected": unexpected}
        report = "; ".join(f"{label}: {first_few(names, 3)}" for label, names in found.items() if names)
        raise CheckpointError(f"{source} does not fit {type(module).__name__}: {report}")
    wrong = [name for name in wanted if wanted[name].shape != state[name].shape]
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"{source}: {name} has shape {tuple(state[name].shape)}, the model expects {tuple(wanted[name].shape)}"
            f" ({len(wrong)} tensor(s) differ); check the model's sizes in the configuration"
        )
    placed = {}
    for name in list(state):
        moved = state.pop(name).to(device)  # before the conversion, which an accelerator does faster
        wanted_dtype = torch.float32 if name.startswith(in_float32) else dtype
        placed[name] = moved.to(wanted_dtype) if wanted_dtype and moved.is_floating_point() else moved
    module.load_state_dict(placed, strict=True, assign=True)


def unexpected_keys(names: Iterable[str], used: Iterable[str], unused: tuple[str, ...]) -> list[str]:
    """Names that are neither used nor match a pattern of `unused`."""
    known = set(used)
    return [name for name in names if name not in known and not matches_any(name, unused)]


def matches_any(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a name begins as one of the regular expressions says."""
    return any(re.match(pattern, name) for pattern in patterns)

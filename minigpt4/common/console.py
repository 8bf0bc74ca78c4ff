"""Tables and panels for people."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

from minigpt4.common.config import LoadedConfig

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

FILE_WIDTH = 160
"""Columns where the output goes to a file or a pipe, which has no width of its own."""


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

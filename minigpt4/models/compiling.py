"""Compiling the frozen parts, block by block: a stack's blocks share their code, so each stack is compiled once."""

from __future__ import annotations

from torch import nn


def compile_blocks(*modules: nn.Module | None) -> None:
    """Let torch compile the repeated blocks of each module when they are first called.

    Sizes are compiled as variables, so that batches of other lengths do not compile anew; attention over packed
    samples stays outside.

    Args:
        modules: Each holds its blocks in a ModuleList; None is passed over.
    """
    for module in modules:
        for stack in [] if module is None else block_stacks(module):
            for block in stack:
                block.compile(dynamic=True)


def block_stacks(module: nn.Module) -> list[nn.ModuleList]:
    """The outermost ModuleLists of a module: its stacks of repeated blocks."""
    if isinstance(module, nn.ModuleList):
        return [module]
    return [stack for child in module.children() for stack in block_stacks(child)]

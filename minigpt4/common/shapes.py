"""The shapes of a YAML file's values: a mapping, a list or a single value, where the schema has one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from minigpt4.common.schema import MAX_BITS, Config

DATASET_NAME = re.compile(r"[^.\[\]=\s]+")
"""A name that can be a part of a dotted key."""


def misshapen(value: Any, expected: Any = Config, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, what is wrong) of values that no setting of their type can have; unknown keys are passed over.

    OmegaConf converts the single values later; for other shapes it has no good words, and for some no error of its own.

    Args:
        value: a plain value, references unresolved.
        expected: its type in the schema; Any allows all shapes.
        key: its dotted key.
    """
    shape = dict if is_dataclass(expected) else get_origin(expected) or expected
    single = not isinstance(value, dict | list)
    if value is None or (isinstance(value, str) and "${" in value):
        return
    if shape is dict and not isinstance(value, dict):
        yield key, f"a mapping of keys to values is expected, not {_named(value)}"
    elif shape is list and not isinstance(value, list):
        yield key, f"a list is expected, for example [a, b], not {_named(value)}"
    elif shape not in (dict, list, Any) and not single:
        yield key, f"a single value is expected, not {_named(value)}"
    elif single:
        yield from _unusable(value, key)
    else:
        yield from _misshapen_entries(value, expected, key)


def _misshapen_entries(values: dict[Any, Any] | list[Any], expected: Any, key: str) -> Iterator[tuple[str, str]]:
    known = get_type_hints(expected) if is_dataclass(expected) else {}
    other = (get_args(expected) or (Any,))[-1]
    if isinstance(values, list):
        for number, entry in enumerate(values):
            yield from misshapen(entry, other, f"{key}[{number}]")
        return
    for name, entry in values.items():
        if key == "datasets" and not (isinstance(name, str) and DATASET_NAME.fullmatch(name)):
            yield key, f"{name!r} cannot be a dataset's name; use letters, digits, '_' and '-'"
        yield from misshapen(entry, known.get(name, other), f"{key}.{name}" if key else str(name))


def _unusable(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        yield key, f"an integer of {value.bit_length():,} bits is too large"
    if isinstance(value, str):
        try:
            usable = b"\0" not in os.fsencode(value)
        except UnicodeEncodeError:
            usable = False
        if not usable:
            yield key, f"{value!r} has a character that can be neither in a path nor in a file"


def _named(value: Any) -> str:
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    # Python refuses to write the digits of a huge integer.
    return repr(value) if isinstance(value, str | float | bool) else "a number"

"""The project's errors: each says what is wrong, where, and what to do next."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from typing import Any

SHOWN = 80
"""Characters of a value that messages show."""


class MiniGPT4Error(ValueError):
    """Base of every error that a user can cause and fix."""


class ConfigError(MiniGPT4Error):
    """A configuration file, key, value or path that cannot be used."""


class MissingSplitError(ConfigError):
    """A dataset has no record in a split that was asked for."""


class DataError(MiniGPT4Error):
    """An annotation file, row or image that cannot be used."""


class RemoteDataError(DataError):
    """Data elsewhere that cannot be reached; nothing takes its place, since it may be there again in a moment."""


class CheckpointError(MiniGPT4Error):
    """A weight or checkpoint file that cannot be read or does not fit the model."""


class MetricError(MiniGPT4Error):
    """A metric that cannot be computed here, or whose inputs do not fit together."""


class ExportError(MiniGPT4Error):
    """A model that cannot be exported, or whose export differs from it."""


class ProcessLostError(MiniGPT4Error):
    """Another rank ended or no longer answers."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint naming the nearest known name, or all of them where none is near."""
    candidates = sorted(known)
    near = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{near[0]}'?"
    return "known: " + (", ".join(candidates) or "none")


def one_line(error: BaseException, longest: int = 300) -> str:
    """The beginning of an error's message in one line, or its type where it has none: libraries may write pages."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= longest else f"{line[:longest]}..."


def first_few(names: Iterable[object], shown: int = 5) -> str:
    """The first names and how many more there are: "a, b, c and 7 more"."""
    listed = [str(name) for name in names]
    more = f" and {len(listed) - shown:,} more" if len(listed) > shown else ""
    return ", ".join(listed[:shown]) + more


def counted(number: int, plural: str) -> str:
    """A number of things in words: "1 image", "1,000 batches".

    Args:
        number: how many there are.
        plural: their name in the plural.
    """
    if number != 1:
        return f"{number:,} {plural}"
    return f"1 {plural[:-2] if plural.endswith(('ches', 'sses')) else plural.removesuffix('s')}"


def shown(value: Any) -> str:
    """A value as messages show it: the first characters of its JSON."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:
        text = f"a {type(value).__name__} that is nested too deeply"
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."

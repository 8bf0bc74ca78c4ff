"""The check that --out overwrites nothing but earlier scores."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from minigpt4.common.errors import DataError, MetricError
from minigpt4.common.files import read_json


def check_replaceable(file: str | Path, keys: Collection[str]) -> None:
    """Make sure that nothing but the scores of an earlier call is overwritten.

    Args:
        file: file to write the scores to.
        keys: keys that every such file has.

    Raises:
        MetricError: The file holds the results of an evaluation, or something else, such as the predictions.
    """
    if not Path(file).exists():
        return
    try:
        content = read_json(file)
    except DataError:
        content = None
    if not isinstance(content, dict) or not set(keys) <= content.keys():
        what = "the results of an evaluation" if isinstance(content, dict) and "rows" in content else "something else"
        raise MetricError(f"{file} holds {what}: name another file by --out")

"""The text that asks a language model for a correction."""

from __future__ import annotations

from pathlib import Path

from minigpt4.common.errors import ConfigError
from minigpt4.common.paths import existing


def correction_request(path: str | None) -> str:
    """What `curation.refine.prompt_path` says, on one line.

    Raises:
        ConfigError: The file is missing or empty.
    """
    file: Path = existing(path, "curation.refine.prompt_path")
    text = " ".join(file.read_text(encoding="utf-8").split())
    if not text:
        raise ConfigError(f"curation.refine.prompt_path: {file} is empty; write the request for a correction into it")
    return text

"""What a refiner is: descriptions of an image -> one corrected text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from minigpt4.common.errors import ConfigError
from minigpt4.common.files import require_path
from minigpt4.common.schema import Config
from minigpt4.evaluation.fluency import words


def correction_request(path: str | None) -> str:
    """What `curation.refine.prompt_path` says, on one line.

    Raises:
        ConfigError: The file is missing or empty.
    """
    file: Path = require_path(path, "curation.refine.prompt_path")
    text = " ".join(file.read_text(encoding="utf-8").split())
    if not text:
        raise ConfigError(f"curation.refine.prompt_path: {file} is empty; write the request for a correction into it")
    return text


@dataclass(frozen=True, slots=True)
class Correction:
    """A refiner's answer.

    Attributes:
        text: The corrected description.
        agreement: Support by the picture's other descriptions, 0 to 1; None where they were not compared.
        usage: Tokens taken, by `prompt_tokens` and `completion_tokens`.
    """

    text: str
    agreement: float | None = None
    usage: Mapping[str, int] = field(default_factory=dict)


class RefineError(Exception):
    """One description could not be corrected now; it stays pending, with this reason.

    Args:
        reason: What happened.
        usage: Tokens that were paid for nevertheless.
        fatal: No other description can be corrected either (a wrong key, an unknown model).
    """

    def __init__(self, reason: str, usage: Mapping[str, int] | None = None, *, fatal: bool = False) -> None:
        super().__init__(reason)
        self.usage = dict(usage or {})
        self.fatal = fatal


class Refiner(ABC):
    """One way to correct descriptions.

    Args:
        cfg: The configuration; everything that can be wrong with it is found here.
    """

    concurrency: int = 1
    """Descriptions corrected at the same time, by as many threads."""

    @abstractmethod
    def __init__(self, cfg: Config) -> None: ...

    @abstractmethod
    def refine(self, sample: str, texts: Sequence[str]) -> Correction:
        """Correct a picture's description.

        Args:
            sample: Id of the sample.
            texts: The description, then further ones of the same picture, if any.

        Raises:
            RefineError: It cannot be done now.
        """


def checked(answer: str, description: str, least: float, usage: Mapping[str, int]) -> Correction:
    """An answer of a language model as a correction, if it is one.

    Args:
        answer: What came.
        description: What was to be corrected.
        least: Share of the answer's words that the description must hold.
        usage: Tokens taken.

    Raises:
        RefineError: It is empty, or about something else.
    """
    text = " ".join(answer.split())
    said = words(text)
    if not said:
        raise RefineError("the answer is empty", usage)
    known = set(words(description))
    overlap = sum(word in known for word in said) / len(said)
    if overlap < least:
        raise RefineError(
            f"the answer shares {overlap:.0%} of its words with the description, at least {least:.0%} is expected: "
            f"{text[:80]!r}",
            usage,
        )
    return Correction(text, usage=usage)

"""What a refiner is: descriptions of an image -> one corrected text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from minigpt4.common.errors import ConfigError
from minigpt4.common.files import read_text, require_path
from minigpt4.common.schema import ModelConfig, RefineConfig
from minigpt4.evaluation.fluency import words


@dataclass(frozen=True, slots=True)
class Correction:
    """A refiner's answer.

    Attributes:
        text: corrected description.
        agreement: support by the image's other descriptions, 0 to 1; None where the refiner does not measure it.
        usage: tokens that it took, by `prompt_tokens` and `completion_tokens`.
    """

    text: str
    agreement: float | None = None
    usage: Mapping[str, int] = field(default_factory=dict)


class RefineError(Exception):
    """One description could not be corrected now; it stays pending, with this reason.

    Args:
        reason: what happened.
        usage: tokens that were paid for nevertheless.
        fatal: no other description can be corrected either (a wrong key, an unknown model).
        retry_after: seconds after which the refiner asks for another attempt; None: it does not say.
    """

    def __init__(
        self,
        reason: str,
        usage: Mapping[str, int] | None = None,
        *,
        fatal: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(reason)
        self.usage = dict(usage or {})
        self.fatal = fatal
        self.retry_after = retry_after


class Refiner(ABC):
    """One way to correct descriptions; a subclass accepts, and may ignore, all of these arguments.

    Args:
        settings: refiner's section of the configuration.
        model: alignment model, whose language model a refiner may use.
        seed: part of the names of all random generators.
        device: auto, cpu or cuda.

    Raises:
        MiniGPT4Error: A setting cannot be used.
    """

    concurrency: int = 1
    """Descriptions corrected at the same time, by as many threads."""

    @abstractmethod
    def __init__(self, settings: RefineConfig, *, model: ModelConfig, seed: int, device: str) -> None: ...

    @abstractmethod
    def refine(self, sample: str, texts: Sequence[str]) -> Correction:
        """Correct an image's description.

        Args:
            sample: id of the sample.
            texts: description to correct, then further ones of the same image, if any.

        Raises:
            RefineError: It cannot be corrected now.
        """


def read_request(path: str | None) -> str:
    """The request for a correction in the file `curation.refine.prompt_path`, on one line.

    Raises:
        ConfigError: The file does not exist or is empty.
        DataError: It is not UTF-8.
    """
    file = require_path(path, "curation.refine.prompt_path")
    text = " ".join(read_text(file).split())
    if not text:
        raise ConfigError(f"curation.refine.prompt_path: {file} is empty; write the request for a correction into it")
    return text


def validate_correction(answer: str, description: str, min_overlap: float, usage: Mapping[str, int]) -> Correction:
    """A language model's answer as a correction.

    Args:
        answer: text that the language model generated.
        description: text to be corrected.
        min_overlap: share of the answer's words that the description must contain.
        usage: tokens that the answer took.

    Raises:
        RefineError: The answer is empty, or about something else.
    """
    text = " ".join(answer.split())
    answered = words(text)
    if not answered:
        raise RefineError("the answer is empty", usage)
    known = set(words(description))
    overlap = sum(word in known for word in answered) / len(answered)
    if overlap < min_overlap:
        raise RefineError(
            f"the answer shares {overlap:.0%} of its words with the description, should be at least {min_overlap:.0%}: "
            f"{text[:80]!r}",
            usage,
        )
    return Correction(text, usage=usage)

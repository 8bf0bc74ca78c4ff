"""The dialogue template: one object for training, evaluation and chat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minigpt4.common.errors import ConfigError, DataError
from minigpt4.common.types import IMAGE_TOKEN

IMAGE_TAG = f"<Img>{IMAGE_TOKEN}</Img>"
"""How a picture stands in a prompt."""
NO_TEMPLATE = "{}"
"""The pattern of stage 1, which puts nothing around a picture."""


@dataclass(frozen=True, slots=True)
class Template:
    """How turns of dialogue are written.

    Attributes:
        pattern: Text around the instruction; `{}` marks its place.
        end: Ends an answer: learnt in training, stops generation.
        opening: The pattern of the first turn, where it differs from that of the others.
        with_system: The pattern of the first turn behind a system message, whose place `{system}` marks; without it
            the message stands in front of the first turn.
        joint: What stands between an answer and the next turn; None: `end`, once where the turn begins with it.
        system: The system message; empty: none.
    """

    pattern: str
    end: str
    opening: str = ""
    with_system: str = ""
    joint: str | None = None
    system: str = ""

    @property
    def first(self) -> str:
        """The pattern of the first turn, without a system message."""
        return self.opening or self.pattern

    def render(self, instruction: str) -> str:
        """The prompt whose continuation is the answer."""
        if not self.system:
            return self.first.replace("{}", instruction)
        before, after = (self.with_system or "{system}" + self.first).split("{}")
        return before.replace("{system}", self.system) + instruction + after

    def render_next(self, instruction: str) -> str:
        """What follows an answer to ask for another one."""
        turn = self.pattern.replace("{}", instruction)
        if self.joint is not None:
            return self.joint + turn
        return turn if self.end and self.pattern.startswith(self.end) else self.end + turn

    def cut(self, text: str) -> str:
        """What stands before the first end mark, stripped."""
        return text.split(self.end, 1)[0].strip() if self.end else text.strip()


def with_image_tag(question: str, images: int = 1) -> str:
    """`question` with its pictures in front of it, unless it places them itself."""
    return question if IMAGE_TOKEN in question else " ".join([IMAGE_TAG] * images + [question])


def check_placeholders(instruction: str, num_images: int, source: str) -> None:
    """Refuse an instruction whose placeholders do not match its pictures.

    Raises:
        DataError: The counts differ.
    """
    found = instruction.count(IMAGE_TOKEN)
    if found != num_images:
        raise DataError(
            f"{source}: {found} image placeholder(s) for {num_images} image(s) in {instruction!r}; "
            f"write {IMAGE_TAG} where each picture belongs"
        )


def read_prompts(path: str, key: str) -> Sequence[str]:
    """Instructions of a text file, one a line, each with exactly one picture.

    Args:
        path: The file.
        key: Its key in the configuration, for messages.

    Raises:
        ConfigError: The file is missing or holds no prompt.
        DataError: A line without the placeholder, or with several.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{key}: prompt file {path} does not exist; set it by --options {key}=PATH")
    lines = file.read_text(encoding="utf-8").splitlines()
    prompts = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise ConfigError(
            f"{key}: {path} holds no prompt; write one instruction a line, such as '{IMAGE_TAG} Describe it.'"
        )
    for number, prompt in prompts:
        check_placeholders(prompt, 1, f"{path}, line {number}")
    return [prompt for _, prompt in prompts]

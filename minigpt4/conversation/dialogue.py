"""Turns of a conversation -> the prompt that asks for the next answer."""

from __future__ import annotations

from dataclasses import dataclass, field

from minigpt4.common.types import IMAGE_TOKEN
from minigpt4.conversation.encoding import PromptEncoder
from minigpt4.conversation.template import IMAGE_TAG, Template, check_placeholders, with_image_tag


@dataclass(slots=True)
class Turn:
    """A question and what was answered.

    Attributes:
        question: As typed.
        images: Pictures that came with it.
        answer: So far.
    """

    question: str
    images: int = 0
    answer: str = ""


@dataclass(frozen=True, slots=True)
class DialoguePrompt:
    """A conversation that fits the context.

    Attributes:
        text: As rendered, with one placeholder a picture.
        ids: Token ids.
        dropped: Turns left out at the beginning.
    """

    text: str
    ids: list[int]
    dropped: int


@dataclass(slots=True)
class Dialogue:
    """A conversation about pictures, each of which stands in the question it came with.

    Attributes:
        template: The one that training used.
        turns: So far.
    """

    template: Template
    turns: list[Turn] = field(default_factory=list)

    @property
    def images(self) -> int:
        """Pictures of all turns."""
        return sum(turn.images for turn in self.turns)

    def prompt(self, question: str, images: int = 0, dropped: int = 0) -> str:
        """The conversation so far and the next question, rendered, with one placeholder a picture.

        Args:
            question: The next one.
            images: Pictures that come with it.
            dropped: Turns to leave out; their pictures stand in the first question that is kept.

        Raises:
            DataError: A question has placeholders, but not as many as pictures.
        """
        left_out = sum(turn.images for turn in self.turns[:dropped])
        text = ""
        for turn in [*self.turns[dropped:], Turn(question, images)]:
            asked = with_image_tag(turn.question, turn.images)
            check_placeholders(asked, turn.images, "question")
            if not text:
                text = self.template.render(" ".join([IMAGE_TAG] * left_out + [asked]))
            else:
                text += self.template.render_next(asked)
            # A model may well say the placeholder's name; it means nothing then.
            text += turn.answer.replace(IMAGE_TOKEN, "")
        return text

    def fit(self, question: str, images: int, encoder: PromptEncoder, room: int) -> DialoguePrompt:
        """As `prompt`, with as many of the oldest turns left out as the context demands, but never a picture.

        Args:
            question: The next one.
            images: Pictures that come with it.
            encoder: Makes the ids.
            room: Tokens that the prompt may have.

        Raises:
            DataError: The question and the pictures alone are too long, or its placeholders do not match.
        """
        for dropped in range(len(self.turns) + 1):
            text = self.prompt(question, images, dropped)
            ids = encoder.encode_unchecked(text, self.images + images, "conversation")
            if len(ids) <= room:
                break
        encoder.check_length(ids, "question", room)
        return DialoguePrompt(text, ids, dropped)

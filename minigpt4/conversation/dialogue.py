"""Turns of a conversation -> the prompt that asks for the next answer."""

from __future__ import annotations

from dataclasses import dataclass, field

from minigpt4.conversation.template import IMAGE_TAG, Piece, PromptEncoder, Template, check_placeholders, with_image_tag


@dataclass(slots=True)
class Turn:
    """A question and its answer.

    Attributes:
        question: text of the question.
        images: number of images that came with it.
        answer: answer generated so far.
        tokens: number of tokens generated for it.
        seconds: time from asking to the newest of them.
        remark: what a reader should know about the answer; empty: nothing.
    """

    question: str
    images: int = 0
    answer: str = ""
    tokens: int = 0
    seconds: float = 0.0
    remark: str = ""


@dataclass(frozen=True, slots=True)
class DialoguePrompt:
    """The prompt of a conversation that fits the context.

    Attributes:
        text: rendered prompt, with one placeholder an image.
        ids: token ids.
        dropped: number of turns left out at the beginning.
    """

    text: str
    ids: list[int]
    dropped: int


@dataclass(slots=True)
class Dialogue:
    """A conversation about images, each of which belongs to the question it came with.

    Attributes:
        template: template of training.
        turns: earlier turns.
    """

    template: Template
    turns: list[Turn] = field(default_factory=list)

    @property
    def images(self) -> int:
        """Number of images in all turns."""
        return sum(turn.images for turn in self.turns)

    def prompt(self, question: str, images: int = 0, dropped: int = 0) -> str:
        """The rendered conversation with the next question, with one placeholder an image.

        Args:
            question: the next question.
            images: number of images that come with it.
            dropped: number of turns to leave out; their images move to the first question that is kept.

        Raises:
            DataError: A question has placeholders, but not as many as images.
        """
        return "".join(piece.text for piece in self._pieces(question, images, dropped))

    def _pieces(self, question: str, images: int, dropped: int) -> list[Piece]:
        left_out = sum(turn.images for turn in self.turns[:dropped])
        turns: list[tuple[str, str]] = []
        for turn in [*self.turns[dropped:], Turn(question, images)]:
            asked = with_image_tag(turn.question, turn.images)
            check_placeholders(asked, turn.images, "question")
            if not turns:
                asked = " ".join([IMAGE_TAG] * left_out + [asked])
            turns.append((asked, turn.answer))
        return self.template.pieces(turns[:-1], turns[-1][0])

    def fit(self, question: str, images: int, encoder: PromptEncoder, max_tokens: int) -> DialoguePrompt:
        """As `prompt`, without as many of the oldest turns as needed to fit the context; all images are kept.

        Args:
            question: the next question.
            images: number of images that come with it.
            encoder: encodes the prompt.
            max_tokens: longest prompt.

        Raises:
            DataError: The question and the images alone are too long, or placeholders and images do not match.
        """
        for dropped in range(len(self.turns) + 1):
            pieces = self._pieces(question, images, dropped)
            ids = encoder.encode_pieces(pieces, self.images + images, "conversation")
            if len(ids) <= max_tokens:
                break
        encoder.check_length(ids, "question", max_tokens)
        return DialoguePrompt("".join(piece.text for piece in pieces), ids, dropped)

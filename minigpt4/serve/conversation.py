"""Messages of a request -> the prompt in the layout that the model was trained with, and where its images are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from minigpt4.common.types import IMAGE_TOKEN
from minigpt4.conversation.template import IMAGE_TAG, PromptEncoder, check_placeholders
from minigpt4.serve.protocol import ImagePart, Message, RequestError

SYSTEM_ROLES = ("system", "developer")
CHARACTERS_PER_TOKEN = 128
"""More characters than any token stands for: a text of more is too long, which is said without reading it."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a request asks.

    Attributes:
        system: the system message; None: that of the model's template.
        earlier: questions and answers before the last question.
        question: the last question; empty: the model's default, about the images.
        images: (place in the request, URL) of each image, in the order of the placeholders.
    """

    system: str | None
    earlier: list[tuple[str, str]]
    question: str
    images: list[tuple[str, str]]

    def ids(self, encoder: PromptEncoder, default: str) -> list[int]:
        """Token ids of the prompt, with IMAGE_POSITION at each image embedding.

        Args:
            encoder: encodes prompts for the model.
            default: question where there are only images.

        Raises:
            DataError: Placeholders in a text do not match the images.
        """
        template = encoder.template if self.system is None else replace(encoder.template, system=self.system)
        question = self.question
        if not question.replace(IMAGE_TAG, "").strip():
            question = f"{question.rstrip()} {default}"
        return encoder.encode_pieces(template.pieces(self.earlier, question), len(self.images), "messages")


def read_messages(messages: Sequence[Message]) -> Conversation:
    """The conversation in a request's messages.

    Messages of the same role that follow each other count as one. An image stands where it is in a message, except that
    images behind all of its text come in front of it, as in training.

    Raises:
        RequestError: Their order has no meaning, or a text is missing.
        DataError: Placeholders in a text do not match the images.
    """
    images: list[tuple[str, str]] = []
    system: list[str] = []
    turns: list[tuple[str, str]] = []  # (role, text)
    numbered = list(enumerate(messages))
    for role, group in groupby(numbered, lambda item: "system" if item[1].role in SYSTEM_ROLES else item[1].role):
        texts = []
        for number, message in group:
            text, found = _text(message, f"messages.{number}")
            if found and role != "user":
                raise RequestError(f"{found[0][0]}: only messages of the user can have images", param=found[0][0])
            texts.append(text)
            images += found
        text = "\n".join(texts)
        if role == "system":
            if turns or system:
                raise RequestError("messages: a system message belongs in front of the others", param="messages")
            check_placeholders(text, 0, "system message")
            system = [text]
        else:
            turns.append((role, text))
    if [role for role, _ in turns] != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        raise RequestError(
            "messages: the user and the assistant should take turns, beginning and ending with the user",
            param="messages",
        )
    texts = [text for _, text in turns]
    if not texts[-1].strip():
        raise RequestError("messages: the last message is empty; write a question", param="messages")
    return Conversation(
        system[0] if system else None, list(zip(texts[:-1:2], texts[1::2], strict=True)), texts[-1], images
    )


def check_size(conversation: Conversation, encoder: PromptEncoder, context: int) -> None:
    """Refuse what cannot fit, before it is tokenised or an image is opened.

    Args:
        conversation: what is asked.
        encoder: encodes prompts for the model.
        context: tokens of a prompt and its answer, at most.

    Raises:
        RequestError: It is too long.
    """
    texts = [
        conversation.system or "",
        conversation.question,
        *(text for turn in conversation.earlier for text in turn),
    ]
    characters, image_tokens = sum(map(len, texts)), len(conversation.images) * encoder.num_image_tokens
    if characters > CHARACTERS_PER_TOKEN * context or image_tokens >= context:
        raise RequestError(
            f"messages: {characters:,} characters and {len(conversation.images)} images of {encoder.num_image_tokens} "
            f"tokens each do not fit into a context of {context:,} tokens (serving.context); shorten the conversation",
            param="messages",
            code="context_length_exceeded",
        )


def _text(message: Message, place: str) -> tuple[str, list[tuple[str, str]]]:
    """The text of a message with a placeholder for each image, and its images."""
    images = [
        (f"{place}.content.{number}", part.image_url.url)
        for number, part in enumerate(message.content)
        if isinstance(part, ImagePart)
    ]
    parts = list(message.content)
    written = [part.text for part in parts if not isinstance(part, ImagePart)]
    if not images or any(IMAGE_TOKEN in text for text in written):
        text = "\n".join(written)
        check_placeholders(text, len(images), place)
        return text, images
    leading = len(parts) - len(images)  # parts of text, if all images are behind them
    if all(isinstance(part, ImagePart) for part in parts[leading:]):
        parts = [*parts[leading:], *parts[:leading]]
    runs = []
    for is_image, run in groupby(parts, lambda part: isinstance(part, ImagePart)):
        texts = [IMAGE_TAG if isinstance(part, ImagePart) else part.text for part in run]
        runs.append((" " if is_image else "\n").join(texts))
    return " ".join(runs), images

"""Prompts and answers -> token ids with positions for image embeddings, and labels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from minigpt4.common.errors import DataError
from minigpt4.common.files import replace_lone_surrogates
from minigpt4.common.types import IGNORED_LABEL, IMAGE_POSITION, IMAGE_TOKEN, Encoded
from minigpt4.conversation.template import Piece, Template, check_placeholders
from minigpt4.conversation.tokenizer import Tokenizer


class PromptEncoder:
    """Encodes [BOS][prompt with images][answer + end], in the order of MiniGPT-4's `preparing_embedding`.

    Each segment of text between images is tokenised alone.

    Args:
        tokenizer: tokenizer of the language model.
        template: template of every prompt.
        num_image_tokens: embeddings of an image (Q).
        max_txt_len: longest answer with its end in tokens; longer ones are cut and lose the end.
        max_context_len: longest prompt in tokens.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: Template,
        num_image_tokens: int,
        max_txt_len: int = 160,
        max_context_len: int = 3800,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.num_image_tokens = num_image_tokens
        self.max_txt_len = max_txt_len
        self.max_context_len = max_context_len

    def prompt(
        self,
        instruction: str,
        num_images: int = 1,
        source: str = "prompt",
        earlier: Sequence[tuple[str, str]] = (),
    ) -> list[int]:
        """Ids of BOS and the rendered instruction.

        Args:
            instruction: the question, with placeholders of its images.
            num_images: images of all questions.
            source: name of the prompt for messages.
            earlier: questions and answers before it.

        Raises:
            DataError: Placeholders and images do not match, or the prompt is longer than max_context_len.
        """
        ids = self.encode_pieces(self.template.pieces(earlier, instruction), num_images, source)
        self.check_length(ids, source, self.max_context_len)
        return ids

    def encode_rendered(self, text: str, num_images: int = 1, source: str = "prompt") -> list[int]:
        """Ids of BOS and a text to which the template has been applied; errors as for `prompt`."""
        ids = self.encode_pieces([Piece(text)], num_images, source)
        self.check_length(ids, source, self.max_context_len)
        return ids

    def encode_pieces(self, pieces: Sequence[Piece], num_images: int, source: str) -> list[int]:
        """Ids of BOS and a prompt of any length.

        Raises:
            DataError: Placeholders and images do not match.
        """
        parts = [piece.text for piece in pieces]
        text = "".join(parts)
        check_placeholders(text, num_images, source)
        ids = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        for part in parts if self.template.in_pieces else [text]:
            ids += self._with_images(part)
        return ids

    def _with_images(self, text: str) -> list[int]:
        """Ids of a text in which placeholders stand for images."""
        ids: list[int] = []
        for index, segment in enumerate(replace_lone_surrogates(text).split(IMAGE_TOKEN)):
            if index:
                ids.extend([IMAGE_POSITION] * self.num_image_tokens)
            ids.extend(self.tokenizer.encode(segment))
        return ids

    def check_length(self, ids: Sequence[int], source: str, max_tokens: int) -> None:
        """Refuse a prompt of more than `max_tokens` tokens.

        Raises:
            DataError: It is longer.
        """
        if len(ids) > max_tokens:
            raise DataError(
                f"{source}: the prompt has {len(ids)} tokens with its images, there is room for {max_tokens} "
                "(model.max_context_len, and the language model's own context less max_new_tokens); shorten it, or "
                "raise the limit"
            )

    def encode_example(
        self,
        instruction: str,
        answer: str,
        num_images: int = 1,
        source: str = "sample",
        earlier: Sequence[tuple[str, str]] = (),
    ) -> Encoded:
        """A training example with labels for each answer and its end; arguments and errors as for `prompt`.

        Of what follows the first question, `max_txt_len` tokens are kept.
        """
        first, *pieces = self.template.pieces(earlier, instruction, trained=True)
        check_placeholders(
            "\n".join(piece.text for piece in (first, *pieces) if not piece.is_answer), num_images, source
        )
        prompt = self.encode_pieces([first], first.text.count(IMAGE_TOKEN), source)
        self.check_length(prompt, source, self.max_context_len)
        ids: list[int] = []
        labels: list[int] = []
        for piece in (*pieces, Piece(answer + self.template.end, is_answer=True)):
            new = self.tokenizer.encode(piece.text) if piece.is_answer else self._with_images(piece.text)
            ids += new
            labels += new if piece.is_answer else [IGNORED_LABEL] * len(new)
        if IMAGE_POSITION in ids[self.max_txt_len :]:
            raise DataError(
                f"{source}: the image of a later question is behind the first {self.max_txt_len} tokens of answers "
                "(model.max_txt_len), which are all that is kept; raise the limit, or shorten the conversation"
            )
        return Encoded(
            input_ids=prompt + ids[: self.max_txt_len],
            labels=[IGNORED_LABEL] * len(prompt) + labels[: self.max_txt_len],
        )

    def labelled_segments(self, encoded: Encoded) -> Sequence[tuple[str, bool]]:
        """Segments of an example as (text, whether it is trained on), images as `<ImageHere>*Q`, for display."""
        tagged = [
            (i == IMAGE_POSITION, label != IGNORED_LABEL, i)
            for i, label in zip(encoded.input_ids, encoded.labels, strict=True)
        ]
        segments = []
        for (is_image, is_target), group in groupby(tagged, key=lambda item: item[:2]):
            ids = [item[2] for item in group]
            if is_image:
                segments.append((f"{IMAGE_TOKEN}*{len(ids)}", False))
                continue
            bos = "[BOS]" * sum(i == self.tokenizer.bos_id for i in ids)
            segments.append((bos + self.tokenizer.decode(ids), is_target))
        return segments

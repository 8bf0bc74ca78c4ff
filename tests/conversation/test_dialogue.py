"""Turns of a conversation -> one prompt."""

from __future__ import annotations

import pytest

from minigpt4.common.errors import DataError
from minigpt4.conversation.dialogue import Dialogue, Turn
from minigpt4.conversation.template import IMAGE_TAG, PromptEncoder, Template
from tests.ascii_tokenizer import AsciiTokenizer

VICUNA = Template("###Human: {} ###Assistant: ", "###")


def test_the_first_question_has_the_image() -> None:
    asked = Dialogue(VICUNA).prompt("What is it?", images=1)
    assert asked == "###Human: <Img><ImageHere></Img> What is it? ###Assistant: "


def test_later_turns_follow_the_earlier_ones() -> None:
    dialogue = Dialogue(VICUNA, [Turn("What is it?", 1, "A dog."), Turn("Which colour?", 0, "Red.")])
    assert dialogue.prompt("Sure?") == (
        "###Human: <Img><ImageHere></Img> What is it? ###Assistant: A dog."
        "###Human: Which colour? ###Assistant: Red.###Human: Sure? ###Assistant: "
    )


def test_a_turn_that_does_not_begin_with_the_end_mark() -> None:
    dialogue = Dialogue(Template("[INST] {} [/INST]", "</s>"), [Turn("What is it?", 1, "A dog.")])
    assert dialogue.prompt("Sure?") == "[INST] <Img><ImageHere></Img> What is it? [/INST]A dog.</s>[INST] Sure? [/INST]"


def test_images_belong_to_the_question_they_came_with() -> None:
    dialogue = Dialogue(Template("H {} A ", "#"), [Turn("one?", 2, "x")])
    assert dialogue.prompt("two?", 1) == f"H {IMAGE_TAG} {IMAGE_TAG} one? A x#H {IMAGE_TAG} two? A "
    assert dialogue.prompt(f"In {IMAGE_TAG}?", 1).endswith(f"H In {IMAGE_TAG}? A ")


def test_placeholders_typed_by_a_user_or_generated_by_the_model() -> None:
    with pytest.raises(DataError, match="1 image placeholder"):
        Dialogue(VICUNA).prompt(f"What is {IMAGE_TAG}?")
    dialogue = Dialogue(VICUNA, [Turn("What?", 1, "a <ImageHere> b")])
    assert dialogue.prompt("Sure?").count("<ImageHere>") == 1


class TestFullContext:
    """The ASCII tokenizer makes a token of each character; an image takes two."""

    encoder = PromptEncoder(AsciiTokenizer(), Template("H {} A ", "#"), num_image_tokens=2)

    def fit(self, max_tokens: int, *turns: Turn, question: str = "now?", images: int = 0):  # type: ignore[no-untyped-def]
        dialogue = Dialogue(self.encoder.template, list(turns))
        return dialogue.fit(question, images, self.encoder, max_tokens)

    def test_what_fits_exactly_is_kept(self) -> None:
        turns = (Turn("first?", 1, "x"), Turn("second?", 0, "y"))
        complete = self.fit(1000, *turns)
        assert complete.dropped == 0
        assert self.fit(len(complete.ids), *turns) == complete
        assert self.fit(len(complete.ids) - 1, *turns).dropped == 1

    def test_the_oldest_turns_are_dropped_and_their_images_kept(self) -> None:
        turns = (Turn("first?", 1, "x"), Turn("second?", 1, "y"), Turn("third?", 0, "z"))
        fitted = self.fit(60, *turns)
        assert fitted.dropped == 2
        assert fitted.text == f"H {IMAGE_TAG} {IMAGE_TAG} third? A z#H now? A "
        assert len(fitted.ids) <= 60

    def test_a_question_that_is_too_long_alone_is_refused(self) -> None:
        with pytest.raises(DataError, match="there is room for 20"):
            self.fit(20, Turn("first?", 1, "x"), question="now " * 10)

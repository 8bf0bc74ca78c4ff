"""Turns of a conversation -> one prompt."""

from __future__ import annotations

from minigpt4.conversation.dialogue import Dialogue
from minigpt4.conversation.template import Template

VICUNA = Template("###Human: {} ###Assistant: ", "###")


def test_the_first_question_shows_the_picture() -> None:
    assert Dialogue(VICUNA).prompt("What is it?") == "###Human: <Img><ImageHere></Img> What is it? ###Assistant: "


def test_later_turns_know_the_earlier_ones() -> None:
    dialogue = Dialogue(VICUNA)
    dialogue.add("What is it?", "A dog.")
    dialogue.add("Which colour?", "Red.")
    assert dialogue.prompt("Sure?") == (
        "###Human: <Img><ImageHere></Img> What is it? ###Assistant: A dog."
        "###Human: Which colour? ###Assistant: Red.###Human: Sure? ###Assistant: "
    )


def test_a_turn_that_does_not_begin_with_the_end_mark() -> None:
    dialogue = Dialogue(Template("[INST] {} [/INST]", "</s>"))
    dialogue.add("What is it?", "A dog.")
    assert dialogue.prompt("Sure?") == "[INST] <Img><ImageHere></Img> What is it? [/INST]A dog.</s>[INST] Sure? [/INST]"

"""Turns of a conversation -> the prompt that asks for the next answer."""

from __future__ import annotations

from dataclasses import dataclass, field

from minigpt4.conversation.template import Template, with_image_tag


@dataclass(slots=True)
class Dialogue:
    """A conversation about one picture, which stands in its first question.

    Attributes:
        template: The one that training used.
        turns: (question, answer) pairs so far.
    """

    template: Template
    turns: list[tuple[str, str]] = field(default_factory=list)

    def prompt(self, question: str) -> str:
        """The conversation so far and the next question, rendered, with one image placeholder.

        Where a turn begins with the mark that ends an answer (Vicuna's `###`), the mark stands once between them.
        """
        end = self.template.end
        text = ""
        for number, (asked, answer) in enumerate([*self.turns, (question, "")]):
            turn = self.template.render(asked if number else with_image_tag(asked))
            text += turn.removeprefix(end) if number and end else turn
            text += answer + end if number < len(self.turns) else ""
        return text

    def add(self, question: str, answer: str) -> None:
        """Remember a turn."""
        self.turns.append((question, answer))

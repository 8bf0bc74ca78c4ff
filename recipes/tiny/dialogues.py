"""What the language model reads: prompts in the dialogue template around a scene's code, and the answers to learn."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from dataset.scenes.captions import captions_of, with_article
from dataset.scenes.scene import sample_scene, split_of
from minigpt4.common.types import IGNORED_LABEL, Encoded
from minigpt4.conversation.encoding import PromptEncoder
from minigpt4.conversation.template import Template, read_prompts, with_image_tag
from minigpt4.evaluation.scenes import BACKGROUNDS, Scene
from recipes.tiny.questions import ask

TEMPLATE = Template("###Human: {} ###Assistant: ", "###")
PROMPT_FILE = Path(__file__).resolve().parents[2] / "prompts" / "alignment.txt"
SHORT_PROMPTS = (
    "Describe this image briefly.",
    "Name the objects in this image.",
    "What is in this picture?",
    "Give a short description of the image.",
)
SYSTEM = (
    "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it to you. "
    "Please answer my questions."
)
EMPTY_SHARE = 0.04
_SHORT, _SECOND_TURN = 0.06, 0.06
_INTERVIEW_TURNS = 6


@dataclass(frozen=True)
class Dialogue:
    """A scene and what is said about it.

    Attributes:
        scene: what the picture shows.
        turns: rendered prompts, each with the answer to learn; the first prompt holds the picture.
    """

    scene: Scene
    turns: tuple[tuple[str, str], ...]

    def encode(self, encoder: PromptEncoder) -> Encoded:
        """Token ids and labels; one turn is laid out as `PromptEncoder.example` does it."""
        ids: list[int] = []
        labels: list[int] = []
        for prompt, answer in self.turns:
            asked = encoder.tokenizer.encode(prompt) if ids else encoder.rendered(prompt)
            target = encoder.tokenizer.encode(answer + encoder.template.end)
            ids += asked + target
            labels += [IGNORED_LABEL] * len(asked) + target
        return Encoded(input_ids=ids, labels=labels)


def training_scene(rng: random.Random) -> Scene:
    """A scene of the train pool, now and then an empty one. It need not be drawable."""
    if rng.random() < EMPTY_SHARE:
        return Scene(rng.choice((*BACKGROUNDS, "plain", "plain")), ())
    while True:
        scene = sample_scene(rng)
        if split_of(scene) == "train":
            return scene


def make_dialogue(scene: Scene, rng: random.Random, prompts: list[str], questions: float = 0.3) -> Dialogue:
    """Draw what is said about a scene: a description, a short one, questions, or a description and a question.

    Args:
        scene: what the picture shows.
        rng: source of every choice.
        prompts: instructions that ask for a description, with the picture's place in each.
        questions: share of dialogues that are questions only.
    """
    draw = rng.random()
    if draw < _SHORT:
        instruction = with_image_tag(rng.choice(SHORT_PROMPTS))
        return Dialogue(scene, ((TEMPLATE.render(instruction), short_caption(scene, rng)),))
    if draw < _SHORT + _SECOND_TURN:
        return _second_turn(scene, rng, prompts)
    if draw < _SHORT + _SECOND_TURN + questions:
        return _interview(scene, rng)
    return describe(scene, rng, prompts)


def describe(scene: Scene, rng: random.Random, prompts: list[str]) -> Dialogue:
    """One of the five captions, asked for by one of the prompts."""
    answer = rng.choice(captions_of(scene, rng))
    return Dialogue(scene, ((TEMPLATE.render(rng.choice(prompts)), answer),))


def short_caption(scene: Scene, rng: random.Random) -> str:
    """The bare names of the objects: "A red circle and a blue star."."""
    if not scene.objects:
        return "Nothing."
    names = [with_article(f"{o.colour} {o.shape}") for o in scene.objects]
    rng.shuffle(names)
    text = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    return text[0].upper() + text[1:] + "."


def _interview(scene: Scene, rng: random.Random) -> Dialogue:
    """Many questions about one picture, each answer learnt.

    Finding the object that a question names is a skill that appears suddenly and late; a sequence with one question
    gives it a single token to learn from.
    """
    turns = []
    for number in range(_INTERVIEW_TURNS):
        _, question, answer = ask(scene, rng)
        turns.append((_following(question, rng) if number else TEMPLATE.render(with_image_tag(question)), answer))
    return Dialogue(scene, tuple(turns))


def _second_turn(scene: Scene, rng: random.Random, prompts: list[str]) -> Dialogue:
    """A question after a description, all that came before in one stretch of text: how a chat program asks it.

    Chat programs differ in whether a system message comes first; both occur.
    """
    prompt, caption = describe(scene, rng, prompts).turns[0]
    _, question, answer = ask(scene, rng)
    system = SYSTEM if rng.random() < 0.5 else ""
    return Dialogue(scene, ((f"{system}{prompt}{caption}{TEMPLATE.end}{_following(question, rng)}", answer),))


def _following(question: str, rng: random.Random) -> str:
    """A later turn, with or without the mark that the answer before it has ended in already."""
    text = TEMPLATE.render(question)
    return text.removeprefix(TEMPLATE.end) if rng.random() < 0.5 else text


def alignment_prompts() -> list[str]:
    """The project's four ways of asking for a description."""
    return list(read_prompts(str(PROMPT_FILE), "model.prompt_path"))

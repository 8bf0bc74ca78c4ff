"""Training text of the language model: prompts in the dialogue template around a scene's code, and the answers."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from minigpt4.common.types import IGNORED_LABEL, Encoded
from minigpt4.conversation.template import PromptEncoder, Template, read_prompts, with_image_tag
from minigpt4.scenes.captions import captions_of, with_article
from minigpt4.scenes.sampling import sample_scene, split_of
from minigpt4.scenes.truth import BACKGROUNDS, Scene
from recipes.tiny.questions import ask

TEMPLATE = Template("###Human: {} ###Assistant: ", "###")
PROMPT_FILE = Path(__file__).resolve().parents[2] / "prompts" / "scenes.txt"
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
_DESCRIBE, _SHORT, _QUESTION = 0.68, 0.08, 0.16  # the rest: a description and then a question


@dataclass(frozen=True)
class Dialogue:
    """A scene, the rendered prompt about it (one image) and the answer to train on."""

    scene: Scene
    prompt: str
    answer: str

    def encode(self, encoder: PromptEncoder) -> Encoded:
        """Token ids and labels, as `PromptEncoder.example` lays them out."""
        prompt = encoder.encode_rendered(self.prompt)
        target = encoder.tokenizer.encode(self.answer + encoder.template.end)
        return Encoded(input_ids=prompt + target, labels=[IGNORED_LABEL] * len(prompt) + target)


def training_scene(rng: random.Random) -> Scene:
    """A scene of the train pool, now and then an empty one. It need not be drawable."""
    if rng.random() < EMPTY_SHARE:
        return Scene(rng.choice((*BACKGROUNDS, "plain", "plain")), ())
    while True:
        scene = sample_scene(rng)
        if split_of(scene) == "train":
            return scene


def make_dialogue(scene: Scene, rng: random.Random, prompts: list[str]) -> Dialogue:
    """Draw what is asked about a scene: mostly a description, sometimes a short one, a question, or two turns.

    Args:
        scene: what the image shows.
        rng: source of every choice.
        prompts: instructions that ask for a description, with the image's place in each.
    """
    draw = rng.random()
    if draw < _DESCRIBE:
        return describe(scene, rng, prompts)
    if draw < _DESCRIBE + _SHORT:
        instruction, answer = with_image_tag(rng.choice(SHORT_PROMPTS)), short_caption(scene, rng)
        return Dialogue(scene, TEMPLATE.render(instruction), answer)
    if draw < _DESCRIBE + _SHORT + _QUESTION:
        _, question, answer = ask(scene, rng)
        return Dialogue(scene, TEMPLATE.render(with_image_tag(question)), answer)
    return _two_turns(scene, rng, prompts)


def describe(scene: Scene, rng: random.Random, prompts: list[str]) -> Dialogue:
    """One of the five captions, asked for by one of the prompts."""
    answer = rng.choice(captions_of(scene, rng))
    return Dialogue(scene, TEMPLATE.render(rng.choice(prompts)), answer)


def short_caption(scene: Scene, rng: random.Random) -> str:
    """The bare names of the objects: "A red circle and a blue star."."""
    if not scene.objects:
        return "Nothing."
    names = [with_article(f"{o.colour} {o.shape}") for o in scene.objects]
    rng.shuffle(names)
    text = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    return text[0].upper() + text[1:] + "."


def _two_turns(scene: Scene, rng: random.Random, prompts: list[str]) -> Dialogue:
    """A first turn with its answer, then a question: how a chat continues.

    Chat programs differ in whether the end mark of an answer is also the start of the next turn, and in whether a
    system message comes first; both occur.
    """
    first = describe(scene, rng, prompts) if rng.random() < 0.6 else _question_turn(scene, rng)
    _, question, answer = ask(scene, rng)
    following = TEMPLATE.render(question)
    if rng.random() < 0.5:
        following = following.removeprefix(TEMPLATE.end)
    system = SYSTEM if rng.random() < 0.5 else ""
    return Dialogue(scene, f"{system}{first.prompt}{first.answer}{TEMPLATE.end}{following}", answer)


def _question_turn(scene: Scene, rng: random.Random) -> Dialogue:
    _, question, answer = ask(scene, rng)
    return Dialogue(scene, TEMPLATE.render(with_image_tag(question)), answer)


def alignment_prompts() -> list[str]:
    """The project's four ways of asking for a description."""
    return list(read_prompts(str(PROMPT_FILE), "model.prompt_path"))

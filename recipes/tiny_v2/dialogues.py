"""Training text of the language model: questions of every task about a scene, in MiniGPT-v2's template."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from minigpt4.common.types import Encoded
from minigpt4.conversation.template import IMAGE_TAG, QUESTION, TEMPLATES, PromptEncoder, read_prompts, with_image_tag
from minigpt4.scenes.questions import TASKS, Question, questions_of
from minigpt4.scenes.sampling import PlacedScene, sample_split
from minigpt4.scenes.truth import Scene
from recipes.tiny_v2.strips import GROUPS, StripScene, strip_scene

TEMPLATE = TEMPLATES["minigpt_v2"]
PROMPT_FOLDER = Path(__file__).resolve().parents[2] / "prompts"
PROMPT_FILES = {task: f"{task}.txt" for task in TASKS} | {"detection": "detection_phrases.txt"}
EMPTY_SHARE = 0.04
_UNMARKED_TASKS = ("caption", "vqa")
"""Tasks whose question also occurs without the task in front, as people ask it."""


@dataclass(frozen=True)
class Mix:
    """What is asked how often.

    Attributes:
        shares: share of each task.
        kinds: weight of a kind of question among those of its task, named "task kind".
        other_kinds: weight of the kinds that are not in `kinds`.
        unmarked: share of captions and answers in words that are asked for without the task in front.
        two_turns: share of dialogues of two questions.
        lonely: share of scenes with fewer than two objects that stays.
    """

    shares: Mapping[str, float]
    kinds: Mapping[str, float] = field(default_factory=dict)
    other_kinds: float = 1.0
    unmarked: float = 0.0
    two_turns: float = 0.0
    lonely: float = 1.0


READING = Mix(
    {"caption": 0.2, "vqa": 0.34, "refer": 0.18, "identify": 0.12, "detection": 0.16}, unmarked=0.15, two_turns=0.08
)
"""All tasks, to learn to read codes and to write answers."""
FINDING = Mix(
    {"caption": 0.05, "vqa": 0.6, "refer": 0.2, "identify": 0.05, "detection": 0.1},
    kinds={"vqa count": 0.4, "vqa background": 0.1, "vqa shape": 0.5, "vqa presence": 2.0, "refer size": 0.3},
    lonely=0.15,
)
"""Mostly questions that name one of several objects, by colour and shape."""
COMPARING = Mix({"vqa": 1.0}, kinds={"vqa relation": 1.0}, other_kinds=0.0, lonely=0.0)
"""Relations only."""
SETTLING = replace(
    FINDING,
    shares=FINDING.shares | {"caption": 0.1, "vqa": 0.55, "detection": 0.12},
    kinds=FINDING.kinds | {"vqa relation": 3.0},
)
"""All that is to stay."""
_OPPOSITES = (" below ", " right of ")
"""Words of relations that come in later."""


@dataclass(frozen=True)
class Dialogue:
    """A scene, and what is asked and answered about it; all answers are trained on."""

    shown: StripScene
    turns: tuple[tuple[str, str], ...]

    def encode(self, encoder: PromptEncoder) -> Encoded:
        """Token ids and labels, as in training on images."""
        *earlier, (question, answer) = self.turns
        first = with_image_tag(earlier[0][0] if earlier else question)
        if earlier:
            return encoder.encode_example(question, answer, earlier=[(first, earlier[0][1]), *earlier[1:]])
        return encoder.encode_example(first, answer)


def training_scenes(count: int, seed: str) -> Iterator[StripScene]:
    """Scenes of the train pool, now and then an empty one."""
    for number, placed in enumerate(sample_split("train", count, seed, distinct=False)):
        rng = random.Random(f"empty-{seed}-{number}")
        empty = Scene(rng.choice(GROUPS["background"]), ())
        yield strip_scene(PlacedScene(empty, (), placed.style_seed) if rng.random() < EMPTY_SHARE else placed)


def make_dialogue(scenes: Sequence[StripScene], rng: random.Random, mix: Mix, opposites: float = 1.0) -> Dialogue:
    """Draw a scene and what is asked about it: one question, or two.

    Args:
        scenes: the scenes.
        rng: source of every choice.
        mix: what is asked how often.
        opposites: share that stays of the relations asked by "below" and "right of".
    """
    turns: list[tuple[str, str]] = []
    while not turns:  # an empty scene has no object to find, and one object no relation
        shown = rng.choice(scenes)
        while len(shown.scene.objects) < 2 and rng.random() >= mix.lonely:
            shown = rng.choice(scenes)
        count = 2 if rng.random() < mix.two_turns else 1
        drawn = [_turn(shown.scene, rng, mix, opposites) for _ in range(count)]
        turns = [turn for turn in drawn if turn]
    return Dialogue(shown, tuple(turns))


def _turn(scene: Scene, rng: random.Random, mix: Mix, opposites: float) -> tuple[str, str] | None:
    """A question and its answer; None: the scene has none of the kind that was drawn."""
    task = rng.choices(list(mix.shares), list(mix.shares.values()))[0]
    weighed = [(mix.kinds.get(f"{task} {q.kind}", mix.other_kinds), q) for q in questions_of(scene, task, rng)]
    asked = [(weight, q) for weight, q in weighed if weight]
    if not asked:
        return None
    (question,) = rng.choices([q for _, q in asked], [weight for weight, _ in asked])
    opposite = question.kind == "relation" and any(word in question.text for word in _OPPOSITES)
    if opposite and rng.random() >= opposites:
        return None
    text = instruction(question, rng)
    if task in _UNMARKED_TASKS and rng.random() < mix.unmarked:
        text = question.text or text.removeprefix(f"[{task}] ")
    return text, rng.choice(question.answers)


def instruction(question: Question, rng: random.Random) -> str:
    """A question in one of its task's prompts, without an image."""
    return rng.choice(_prompts(question.task)).replace(QUESTION, question.text)


@cache
def _prompts(task: str) -> list[str]:
    prompts = read_prompts(str(PROMPT_FOLDER / PROMPT_FILES[task]), task)
    return [prompt.replace(IMAGE_TAG, "").strip() for prompt in prompts]

"""Training of the projection: the short stage 1 that is shipped, and a rehearsal of the quick start's run."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from minigpt4.common.types import Sample
from minigpt4.datasets.loaders import collate
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.processors.image import normalize
from minigpt4.scenes.captions import captions_of
from minigpt4.scenes.truth import Scene
from recipes.tiny.dialogues import alignment_prompts, short_caption
from recipes.tiny.images import SceneImages

Answers = Callable[[int, random.Random], str]


@dataclass(frozen=True)
class AlignmentSettings:
    """Duration and rate of a training of the projection."""

    steps: int
    lr: float = 1e-3
    batch: int = 16
    warmup: int = 20


def stage1_answers(drawn: SceneImages, wrong_share: float = 0.3) -> Answers:
    """Short captions, some of them of another image: the noisy web text of a first stage."""

    def answer(index: int, rng: random.Random) -> str:
        scene: Scene = drawn.scenes[index]
        if rng.random() < wrong_share:
            scene = rng.choice(drawn.scenes)
        return short_caption(scene, rng)

    return answer


def caption_answers(drawn: SceneImages) -> Answers:
    """One of an image's five captions, which stay the same from epoch to epoch."""
    captions = [captions_of(scene, random.Random(f"rehearsal-{i}")) for i, scene in enumerate(drawn.scenes)]
    return lambda index, rng: rng.choice(captions[index])


def train_projection(
    model: MiniGPT4, drawn: SceneImages, answers: Answers, settings: AlignmentSettings, seed: str
) -> Iterator[int]:
    """Train `llama_proj`, epoch by epoch.

    Yields:
        The number of the epoch just finished (from 0); a last, incomplete one counts.
    """
    prompts = alignment_prompts()
    weight, bias = model.llama_proj.weight, model.llama_proj.bias
    optimizer = torch.optim.AdamW(
        [{"params": [weight], "weight_decay": 0.05}, {"params": [bias], "weight_decay": 0.0}], lr=settings.lr
    )
    per_epoch = math.ceil(len(drawn) / settings.batch)
    model.train()
    for step in range(settings.steps):
        epoch, at = divmod(step, per_epoch)
        order = list(range(len(drawn)))
        random.Random(f"{seed}-{epoch}").shuffle(order)
        rows = order[at * settings.batch : (at + 1) * settings.batch]
        images = normalize(drawn.images[rows])
        samples = []
        for row, image in zip(rows, images, strict=True):
            rng = random.Random(f"{seed}-{epoch}-{row}")
            samples.append(_sample(model, image, rng.choice(prompts), answers(row, rng)))
        batch = collate(samples)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(batch) / batch.num_targets
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * _factor(step, settings)
        torch.nn.utils.clip_grad_norm_(model.llama_proj.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if at == per_epoch - 1 or step == settings.steps - 1:
            model.eval()
            yield epoch
            model.train()
    model.eval()


def _sample(model: MiniGPT4, image: Tensor, prompt: str, answer: str) -> Sample:
    return Sample(image_id="", images=(image,), encoded=model.encoder.encode_example(prompt, answer))


def _factor(step: int, settings: AlignmentSettings) -> float:
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    return 0.5 * (1 + math.cos(math.pi * step / settings.steps))

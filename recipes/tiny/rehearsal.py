"""The quick start's run, rehearsed in memory: what the shipped weights let one minute of training reach."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.scenes.captions import captions_of
from minigpt4.scenes.truth import Scene
from recipes.tiny.alignment import AlignmentSettings, caption_answers, train_projection
from recipes.tiny.answering import answer_from_images
from recipes.tiny.dialogues import alignment_prompts
from recipes.tiny.images import SceneImages, draw_images
from recipes.tiny.oracle import caption_scores, question_scores
from recipes.tiny.sizes import PATCH_SIZE

EPOCHS, TRAIN_SCENES, TEST_SCENES, BATCH = 5, 1000, 200, 16
Row = dict[str, float]


@dataclass(frozen=True)
class Rehearsal:
    """Scores of the projection before and after each epoch, and of questions after the last."""

    rows: dict[str, Row]
    questions: Row
    samples: list[str]
    blank: dict[str, str]


def rehearse(model: MiniGPT4, seed: str) -> Rehearsal:
    """Train the projection as the quick start does and score it on unseen scenes; leaves it trained."""
    train = draw_images("train", TRAIN_SCENES, f"{seed}-train", PATCH_SIZE, empty_share=0.0)
    test = draw_images("test", TEST_SCENES, f"{seed}-test", PATCH_SIZE, empty_share=0.0)
    rows = {"stage 1": _row(model, test)}
    settings = AlignmentSettings(steps=EPOCHS * -(-TRAIN_SCENES // BATCH), batch=BATCH)
    for epoch in train_projection(model, train, caption_answers(train), settings, seed):
        rows[f"epoch {epoch}"] = _row(model, test)
    answer = answer_from_images(model, test.images)
    samples = answer(test.scenes[:8], [alignment_prompts()[0]] * 8)
    return Rehearsal(rows, question_scores(answer, test.scenes, seed), samples, _blank_answers(model))


def _row(model: MiniGPT4, test: SceneImages) -> Row:
    prompts = [alignment_prompts()[0]] * len(test)
    captions = answer_from_images(model, test.images)(test.scenes, prompts)
    swapped: list[Scene] = test.scenes[1:] + test.scenes[:1]
    return {
        **caption_scores(captions, test.scenes),
        "largest, swapped": caption_scores(captions, swapped)["largest"],
        **_text_scores(captions, test.scenes),
    }


def _text_scores(captions: list[str], scenes: list[Scene]) -> Row:
    """BLEU-4 and CIDEr where pycocoevalcap is installed; words are split at spaces, so figures differ a little."""
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
    except ImportError:
        return {}

    def plain(text: str) -> str:
        return " ".join(text.lower().replace(",", " ").replace(".", " ").replace(":", " ").split())

    wanted = {i: [plain(c) for c in captions_of(scene, random.Random(f"test-{i}"))] for i, scene in enumerate(scenes)}
    got = {i: [plain(caption)] for i, caption in enumerate(captions)}
    bleu = Bleu(4).compute_score(wanted, got, verbose=0)[0][3]
    return {"BLEU-4": float(bleu), "CIDEr": float(Cider().compute_score(wanted, got)[0])}


def _blank_answers(model: MiniGPT4) -> dict[str, str]:
    """What the model says to images with nothing on them."""
    levels = {"black": 0, "grey": 122, "white": 255}
    images = torch.stack([torch.full((3, 64, 64), level, dtype=torch.uint8) for level in levels.values()])
    texts = answer_from_images(model, images)([], [alignment_prompts()[0]] * len(levels))
    return dict(zip(levels, texts, strict=True))

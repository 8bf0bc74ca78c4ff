"""Training of the tiny MiniGPT-v2's language model on text: it goes on from the tiny MiniGPT-4's, which reads no boxes.

A scene's code stands where an image's embeddings will stand, through a linear map that is thrown away afterwards.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from minigpt4.common.types import IGNORED_LABEL, Batch, Sample
from minigpt4.conversation.template import PromptEncoder
from minigpt4.datasets.loaders import collate
from minigpt4.models.minigpt4 import answer_losses, splice_images
from recipes.tiny.optim import HybridOptimizer
from recipes.tiny_v2.dialogues import (
    COMPARING,
    FINDING,
    READING,
    SETTLING,
    Dialogue,
    Mix,
    make_dialogue,
    training_scenes,
)
from recipes.tiny_v2.strips import CODE_WIDTH, StripScene, blurred

logger = logging.getLogger(__name__)
_EMBEDDING_STD = 0.3


@dataclass(frozen=True)
class LanguageSettings:
    """What is learned, how long and how fast.

    Attributes:
        mix: what is asked.
        steps: optimizer steps.
        batch: dialogues of a step.
        scenes: scenes that are asked about.
        blur: imprecision of the codes, 0 to 1.
        by_token: every token of the answers counts the same; false: an answer counts by the root of its tokens, so that
            single words are not lost among captions and boxes.
        lr: peak learning rate.
        opposites: when relations asked by "below" and "right of" come in: shares of the steps at which the first of
            them and the last of them do; None: they are there from the start.
        reports: steps between two lines of the log.
        seed: names all random choices.
    """

    mix: Mix
    steps: int
    batch: int
    scenes: int
    blur: float
    by_token: bool
    lr: float = 2e-3
    opposites: tuple[float, float] | None = None
    reports: int = 100
    seed: int = 0

    def share_of_opposites(self, step: int) -> float:
        """How many relations asked by "below" and "right of" are kept at a step."""
        if self.opposites is None:
            return 1.0
        first, last = (share * self.steps for share in self.opposites)
        return min(1.0, max(0.0, (step - first) / (last - first)))


READING_SETTINGS = LanguageSettings(READING, steps=1600, batch=32, scenes=20_000, blur=1.0, by_token=True)
FINDING_SETTINGS = LanguageSettings(FINDING, steps=1700, batch=48, scenes=8_000, blur=0.6, by_token=False)
"""Without this second part, the model answers questions about a named object with any of the objects there are."""
COMPARING_SETTINGS = LanguageSettings(
    COMPARING, steps=600, batch=64, scenes=16_000, blur=0.6, by_token=True, opposites=(0.25, 0.75)
)
"""The answer to a relation depends on two places and on the word that is asked about them. With words and their
opposites in equal shares, neither place alone says anything about the answer, and nothing is learned; so the opposites
come in later, a few at first."""
SETTLING_SETTINGS = LanguageSettings(SETTLING, steps=800, batch=48, scenes=8_000, blur=0.6, by_token=False)
"""Brings back what was lost meanwhile."""
LESSONS = {
    "reading": READING_SETTINGS,
    "finding": FINDING_SETTINGS,
    "comparing": COMPARING_SETTINGS,
    "settling": SETTLING_SETTINGS,
}
"""The parts of the language model's training, in order."""


class StripReader(nn.Module):
    """A language model and the map by which it reads codes."""

    def __init__(self, model: LlamaForCausalLM, encoder: PromptEncoder) -> None:
        super().__init__()
        self.model, self.encoder = model, encoder
        self.code_map = nn.Linear(CODE_WIDTH, model.config.hidden_size, bias=False)
        nn.init.normal_(self.code_map.weight, std=_EMBEDDING_STD)

    def loss(self, dialogues: Sequence[Dialogue], rng: torch.Generator, settings: LanguageSettings) -> Tensor:
        """Cross-entropy of the answers."""
        batch = collate([Sample(image_id="", images=(), encoded=d.encode(self.encoder)) for d in dialogues])
        codes = blurred(torch.stack([d.shown.code() for d in dialogues]), rng, settings.blur)
        losses = answer_losses(self.model, self.embed(batch, self.code_map(codes)), batch)
        if settings.by_token:
            return losses.sum() / batch.num_targets
        return (losses / batch.labels.ne(IGNORED_LABEL).sum(1).sqrt()).mean()

    def embed(self, batch: Batch, image_embeds: Tensor) -> Tensor:
        """Token embeddings (B, T, D) with the codes' in place."""
        tokens = self.model.get_input_embeddings()(batch.input_ids.clamp(min=0))
        return splice_images(tokens, image_embeds, batch.image_positions)

    @torch.no_grad()
    def prompt_embeds(self, shown: Sequence[StripScene], questions: Sequence[str]) -> list[Tensor]:
        """Embeddings of each prompt with its scene's code, (T, D)."""
        encoded = [self.encoder.prompt(question) for question in questions]
        ids = torch.tensor([[token for prompt in encoded for token in prompt]])
        codes = self.code_map(torch.stack([scene.code() for scene in shown]))
        embeds = splice_images(
            self.model.get_input_embeddings()(ids.clamp(min=0)), codes, (ids.flatten() < 0).nonzero().squeeze(1)
        )
        return list(embeds[0].split([len(prompt) for prompt in encoded]))


def load_language_model(folder: Path) -> LlamaForCausalLM:
    """The language model in a folder, in float32."""
    model: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model


def extend_vocabulary(model: LlamaForCausalLM, vocabulary: int) -> None:
    """Add untrained embeddings behind those that the language model has."""
    old = model.config.vocab_size
    model.resize_token_embeddings(vocabulary, mean_resizing=False)
    with torch.no_grad():
        nn.init.normal_(model.get_input_embeddings().weight[old:], std=_EMBEDDING_STD)
        nn.init.zeros_(model.get_output_embeddings().weight[old:])


def train_language_model(reader: StripReader, settings: LanguageSettings) -> None:
    """Train the language model on dialogues made up as it goes."""
    shown = list(training_scenes(settings.scenes, f"language-v2-{settings.seed}"))
    optimizer = HybridOptimizer([reader], settings.steps, muon_lr=settings.lr, adam_lr=settings.lr)
    generator = torch.Generator().manual_seed(settings.seed)
    started, total = time.monotonic(), 0.0
    reader.train()
    for step in range(settings.steps):
        rngs = [random.Random(f"language-v2-{settings.seed}-{step}-{row}") for row in range(settings.batch)]
        dialogues = [make_dialogue(shown, rng, settings.mix, settings.share_of_opposites(step)) for rng in rngs]
        with torch.autocast("cpu", torch.bfloat16):
            loss = reader.loss(dialogues, generator, settings)
        loss.backward()
        optimizer.step(step)
        total += loss.item()
        if (step + 1) % settings.reports == 0:
            seconds = time.monotonic() - started
            logger.info(
                "language %d/%d  loss %.3f  %.0f s", step + 1, settings.steps, total / settings.reports, seconds
            )
            total = 0.0
    reader.eval()

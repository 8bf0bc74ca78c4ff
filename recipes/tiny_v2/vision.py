"""Training of the tiny MiniGPT-v2's vision encoder: a linear map of each strip of four patches tells its code.

It goes on from the tiny MiniGPT-4's, which was never asked where exactly an object ends.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt4.common.schema import ModelConfig
from minigpt4.models.merged_patches import MergedPatches, build_merged_patches
from minigpt4.models.vision import VisionEncoder, build_vision_encoder
from minigpt4.processors.image import normalize
from minigpt4.scenes.truth import Scene
from recipes.tiny.images import drawn_scenes
from recipes.tiny.optim import HybridOptimizer
from recipes.tiny.sizes import IMAGE_SIZE, VIT_ARGS, VIT_BLOCKS, VIT_NAME
from recipes.tiny_v2.strips import CODE_WIDTH, GROUPS, SIDES, WORDS, codes, strip_scene

logger = logging.getLogger(__name__)
_WEIGHTS = {"shape": 2.0}  # the slowest to train
_SIDES, _SPREAD = 8.0, 0.3


@dataclass(frozen=True)
class StripImages:
    """Drawn scenes.

    Attributes:
        images: (N, 3, S, S) uint8.
        words: words of the codes, (N, strips, groups) int64.
        sides: waves of the boxes' sides, (N, strips, SIDES).
        scenes: what was drawn, N of them, objects with boxes.
    """

    images: Tensor
    words: Tensor
    sides: Tensor
    scenes: list[Scene]


def draw_strips(split: str, count: int, seed: str, empty_share: float = 0.05) -> StripImages:
    """Draw scenes of one split's pool, some of them empty."""
    images, shown = [], []
    for placed, image in drawn_scenes(split, count, seed, empty_share):
        images.append(np.asarray(image))
        shown.append(strip_scene(placed))
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    words, sides = torch.stack([s.words for s in shown]), torch.stack([s.sides for s in shown])
    return StripImages(stacked, words, sides, [s.scene for s in shown])


class StripVision(nn.Module):
    """The project's vision encoder and MiniGPT-v2's bridge, with throw-away heads.

    `prototypes` draw all strips of one code to one point, so that little but the code is in the features, and what a
    few images teach about an object holds for all places.
    """

    def __init__(self, weights: Path) -> None:
        super().__init__()
        cfg = ModelConfig(
            vit_model=VIT_NAME,
            image_size=IMAGE_SIZE,
            vit_blocks=VIT_BLOCKS,
            vit_args=VIT_ARGS,
            vit_weights=str(weights),
            has_qformer=False,
        )
        encoder = build_vision_encoder(cfg, torch.float32, torch.device("cpu"))
        self.encoder: VisionEncoder = encoder.requires_grad_(True)
        self.bridge: MergedPatches = build_merged_patches(encoder, cfg.joined_patches)
        self.words = nn.Linear(self.bridge.width, len(WORDS))
        self.sides = nn.Linear(self.bridge.width, SIDES)
        self.prototypes = nn.Linear(CODE_WIDTH, self.bridge.width)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 images (N, 3, S, S) -> strips (N, strips, width)."""
        strips: Tensor = self.bridge(self.encoder(normalize(images)))
        return strips

    def loss(self, images: Tensor, words: Tensor, sides: Tensor) -> Tensor:
        """Cross-entropy of the words, squared error of the sides where there is an object, and of the prototypes."""
        strips = self(images)
        by_group = self.words(strips).float().split([len(group) for group in GROUPS.values()], -1)
        total = strips.new_zeros((), dtype=torch.float32)
        for index, (name, logits) in enumerate(zip(GROUPS, by_group, strict=True)):
            total = total + _WEIGHTS.get(name, 1.0) * F.cross_entropy(logits.flatten(0, 1), words[..., index].flatten())
        shows = words[..., 0] > 0
        wrong = F.mse_loss(self.sides(strips)[shows].float(), sides[shows]) if shows.any() else 0.0
        spread = F.mse_loss(strips.float(), self.prototypes(codes(words, sides)).float())
        return total / len(GROUPS) + _SIDES * wrong + _SPREAD * spread


@dataclass(frozen=True)
class VisionSettings:
    """How long and how fast."""

    steps: int = 800
    batch: int = 48
    lr: float = 2e-3
    seed: int = 0
    reports: int = 200


def train_vision(model: StripVision, drawn: StripImages, checks: StripImages, settings: VisionSettings) -> None:
    """Train the vision encoder with its heads.

    Args:
        model: what to train.
        drawn: images to train on.
        checks: held-out images for the accuracies in the log.
        settings: duration.
    """
    optimizer = HybridOptimizer([model], settings.steps, muon_lr=settings.lr, adam_lr=settings.lr)
    order = torch.Generator().manual_seed(settings.seed)
    started, total = time.monotonic(), 0.0
    model.train()
    for step in range(settings.steps):
        rows = torch.randint(len(drawn.scenes), (settings.batch,), generator=order)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(drawn.images[rows], drawn.words[rows], drawn.sides[rows])
        loss.backward()
        optimizer.step(step)
        total += loss.item()
        if (step + 1) % settings.reports == 0:
            shown = " ".join(f"{name} {value:.3f}" for name, value in strip_scores(model, checks).items())
            mean, seconds = total / settings.reports, time.monotonic() - started
            logger.info("vision %d/%d  loss %.3f  %.0f s  %s", step + 1, settings.steps, mean, seconds, shown)
            total = 0.0
    model.eval()


@torch.no_grad()
def strip_scores(model: StripVision, checks: StripImages, batch: int = 100) -> dict[str, float]:
    """Shares of right words over the strips that show an object (background: all); for sides, 1 less the mean error."""
    parts = [model(images) for images in checks.images.split(batch)]
    strips = torch.cat(parts)
    shows = checks.words[..., 0] > 0
    by_group = model.words(strips).split([len(group) for group in GROUPS.values()], -1)
    scores = {"object": (by_group[0].argmax(-1) > 0).eq(shows).float().mean().item()}
    for index, (name, logits) in enumerate(zip(GROUPS, by_group, strict=True)):
        right = logits.argmax(-1).eq(checks.words[..., index])
        scores[name] = (right if name == "background" else right[shows]).float().mean().item()
    # Of the slowest wave (half a turn over the image), whose angle tells the side.
    found, true = (_angles(sides[shows]) for sides in (model.sides(strips), checks.sides))
    scores["sides"] = 1 - (found - true).abs().mean().item()
    return scores


def _angles(sides: Tensor) -> Tensor:
    """Sides as shares of the image, from waves (..., SIDES) -> (..., 4)."""
    waves = sides.unflatten(-1, (4, -1, 2))
    return torch.atan2(waves[..., 0, 0], waves[..., 0, 1]) / torch.pi

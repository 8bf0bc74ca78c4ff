"""Pre-training of the tiny ViT and Q-Former: each query learns to say its own word of the scene code."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt4.common.schema import ModelConfig
from minigpt4.models.qformer import QFormer
from minigpt4.models.vision import VisionEncoder
from minigpt4.processors.image import normalize
from recipes.tiny.codes import ATTRIBUTES, CODE_LENGTH, MAX_OBJECTS, WORDS, position_name
from recipes.tiny.images import BACKGROUND_SLOT, SceneImages
from recipes.tiny.optim import HybridOptimizer
from recipes.tiny.sizes import IMAGE_SIZE, NUM_QUERIES, QFORMER_ARGS, VIT_ARGS, VIT_BLOCKS, VIT_NAME

logger = logging.getLogger(__name__)
_WEIGHTS = {"shape": 2.0}  # the slowest to train
_SPREAD = 0.3
PATCH_ATTRIBUTES = 3  # size, colour and shape are properties of a patch; row and column are not


class VisionModel(nn.Module):
    """The project's vision encoder and Q-Former, initialised for their small widths."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = VisionEncoder(
            ModelConfig(vit_model=VIT_NAME, image_size=IMAGE_SIZE, vit_blocks=VIT_BLOCKS, vit_args=VIT_ARGS)
        )
        no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        self.qformer = QFormer(self.encoder.width, NUM_QUERIES, QFORMER_ARGS | no_dropout)
        # The default deviation of .02 is far too small for matrices this narrow: only colour would be learned.
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.qformer.query_tokens, std=1.0)
        nn.init.normal_(self.encoder.backbone.pos_embed, std=0.3)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, S, S) -> patches with the class token (B, P + 1, width), queries (B, Q, width)."""
        patches = self.encoder(images)
        return self.qformer.ln_vision(patches), self.qformer(patches)


class Heads(nn.Module):
    """Throw-away classifiers: a word for each query, and size, colour and shape for each patch.

    `prototypes` gather the queries that say the same word, whatever their slot, around one point: then a single
    linear map serves all queries, and what a thousand images teach it about one slot holds for the others.
    """

    def __init__(self) -> None:
        super().__init__()
        width = QFORMER_ARGS["hidden_size"]
        self.word = nn.Linear(width, len(WORDS))
        self.prototypes = nn.Embedding(len(WORDS), width)
        self.patch = nn.Linear(VIT_ARGS["embed_dim"], PATCH_ATTRIBUTES * len(WORDS))

    def loss(self, patches: Tensor, queries: Tensor, codes: Tensor, slots: Tensor) -> Tensor:
        """Cross-entropy of the queries' words, half that of the patches, and the spread around the prototypes."""
        by_word = F.cross_entropy(self.word(queries).flatten(0, 1), codes.flatten(), reduction="none")
        weights = torch.tensor([_WEIGHTS.get(position_name(i).split()[0], 1.0) for i in range(CODE_LENGTH)])
        by_query = (by_word.view_as(codes) * weights / weights.mean()).mean()
        logits = self.patch(patches[:, 1:]).unflatten(-1, (PATCH_ATTRIBUTES, len(WORDS)))
        by_patch = F.cross_entropy(logits.flatten(0, 2), patch_words(codes, slots).flatten())
        spread = F.mse_loss(queries.float(), self.prototypes(codes))
        return by_query + 0.5 * by_patch + _SPREAD * spread


def patch_words(codes: Tensor, slots: Tensor) -> Tensor:
    """Size, colour and shape words of each patch, (B, P, 3); "none" (0) on the background."""
    by_slot = codes[:, : MAX_OBJECTS * len(ATTRIBUTES)].unflatten(1, (MAX_OBJECTS, len(ATTRIBUTES)))
    by_slot = F.pad(by_slot[:, :, :PATCH_ATTRIBUTES], (0, 0, 0, BACKGROUND_SLOT + 1 - MAX_OBJECTS))
    return by_slot.gather(1, slots.unsqueeze(-1).expand(-1, -1, PATCH_ATTRIBUTES))


@dataclass(frozen=True)
class VisionSettings:
    """How long and how fast."""

    steps: int = 3000
    batch: int = 48
    seed: int = 0


def train_vision(drawn: SceneImages, checks: SceneImages, settings: VisionSettings) -> tuple[VisionModel, Heads]:
    """Train ViT and Q-Former from scratch.

    Args:
        drawn: images to train on.
        checks: held-out images for the accuracies in the log.
        settings: duration.

    Returns:
        The model and its heads, in eval mode.
    """
    torch.manual_seed(settings.seed)
    model, heads = VisionModel(), Heads()
    optimizer = HybridOptimizer([model, heads], settings.steps)
    order = torch.Generator().manual_seed(settings.seed)
    started, total = time.monotonic(), 0.0
    for step in range(settings.steps):
        rows = torch.randint(len(drawn), (settings.batch,), generator=order)
        with torch.autocast("cpu", torch.bfloat16):
            patches, queries = model(normalize(drawn.images[rows]))
            loss = heads.loss(patches, queries, drawn.codes[rows], drawn.slots[rows])
        loss.backward()
        optimizer.step(step)
        total += loss.item()
        if (step + 1) % 200 == 0:
            logger.info(
                "vision %d/%d  loss %.3f  %.0f s  %s",
                step + 1, settings.steps, total / 200, time.monotonic() - started, _brief(model, heads, checks),
            )  # fmt: skip
            total = 0.0
    return model.eval(), heads.eval()


@torch.no_grad()
def predict_codes(model: VisionModel, heads: Heads, images: Tensor, batch: int = 100) -> Tensor:
    """The words that the queries say, (N, 16), for uint8 images (N, 3, S, S)."""
    model.eval()
    parts = [heads.word(model(normalize(part))[1]).argmax(-1) for part in images.split(batch)]
    model.train()
    return torch.cat(parts)


def accuracies(predicted: Tensor, codes: Tensor) -> dict[str, float]:
    """Share of right words by place of the code, over images in which that slot is used; "all": whole codes."""
    result = {"all": (predicted == codes).all(1).float().mean().item()}
    for index in range(CODE_LENGTH):
        used = codes[:, index] != 0
        result[position_name(index)] = (predicted[used, index] == codes[used, index]).float().mean().item()
    return result


def _brief(model: VisionModel, heads: Heads, checks: SceneImages) -> str:
    scores = accuracies(predict_codes(model, heads, checks.images[:400]), checks.codes[:400])
    return " ".join(f"{name.replace(' ', '')} {value:.2f}" for name, value in scores.items() if not math.isnan(value))

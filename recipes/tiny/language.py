"""Pre-training of the tiny LLaMA on text alone: it learns to read scene codes, and to talk about them.

A scene's code stands where an image's embeddings will stand. Its words' embeddings are blurred in training, because
what a projection makes of an image will never be exactly such an embedding.
"""

from __future__ import annotations

import logging
import random
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from minigpt4.common.types import IGNORED_LABEL, Batch, Sample
from minigpt4.conversation.template import PromptEncoder
from minigpt4.conversation.tokenizer import SentencePieceTokenizer
from minigpt4.datasets.loaders import collate
from minigpt4.models.minigpt4 import splice_images
from recipes.tiny.codes import PIECES, encode_scene
from recipes.tiny.dialogues import Dialogue, alignment_prompts, make_dialogue, training_scene
from recipes.tiny.optim import HybridOptimizer
from recipes.tiny.sizes import LLAMA_ARGS

logger = logging.getLogger(__name__)
_EMBEDDING_STD = 0.3
_NOISE, _MIXING, _ZEROED = 0.5, 0.4, 0.02


@dataclass(frozen=True)
class LanguageSettings:
    """How long and how fast; `reports` is the number of steps between two lines of the log."""

    steps: int = 1800
    batch: int = 32
    seed: int = 0
    reports: int = 200


class CodeReader:
    """Turns dialogues into batches whose image positions hold the embeddings of the scene's code words."""

    def __init__(self, model: LlamaForCausalLM, encoder: PromptEncoder) -> None:
        tokenizer = encoder.tokenizer
        assert isinstance(tokenizer, SentencePieceTokenizer)
        self.model, self.encoder = model, encoder
        self.piece_ids = torch.tensor([piece_id(tokenizer, piece) for piece in PIECES])

    def code_embeddings(self, codes: Tensor) -> Tensor:
        """Codes (B, 16) as embeddings (B, 16, D)."""
        return self.model.get_input_embeddings()(self.piece_ids[codes])

    def blurred(self, codes: Tensor) -> Tensor:
        """The same with noise, a share of another word mixed in, and here and there nothing; all drawn by sample."""
        clean = self.code_embeddings(codes)
        table = self.model.get_input_embeddings()(self.piece_ids)
        others = table[torch.randint(len(PIECES), codes.shape)]
        share = torch.rand(len(codes), 1, 1) * _MIXING * (torch.rand(len(codes), 1, 1) < 0.5)
        noise = torch.randn_like(clean) * clean.detach().pow(2).mean().sqrt()
        level = torch.rand(len(codes), 1, 1) * _NOISE
        kept = torch.rand(*codes.shape, 1) >= _ZEROED
        return ((1 - share) * clean + share * others + level * noise) * kept

    def loss(self, dialogues: list[Dialogue]) -> Tensor:
        """Mean cross-entropy of the answers' tokens."""
        batch = collate([Sample(image_id="", images=(), encoded=d.encode(self.encoder)) for d in dialogues])
        codes = torch.tensor([encode_scene(d.scene) for d in dialogues])
        logits = self.model(
            inputs_embeds=self.embed(batch, self.blurred(codes)),
            use_cache=False,
            logits_to_keep=batch.target_columns,
        ).logits
        targets = batch.labels[:, batch.target_columns + 1]
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED_LABEL)

    def embed(self, batch: Batch, image_embeds: Tensor) -> Tensor:
        """Token embeddings (B, T, D) with the code's in place."""
        tokens = self.model.get_input_embeddings()(batch.input_ids.clamp(min=0))
        return splice_images(tokens, image_embeds, batch.image_positions)


def piece_id(tokenizer: SentencePieceTokenizer, piece: str) -> int:
    """The id of a piece that is one token (sentencepiece puts a word mark before it)."""
    ids = tokenizer.encode(piece)
    assert len(ids) == 2, f"{piece} is not one token: {ids}"
    return ids[1]


def build_language_model(vocabulary: int) -> LlamaForCausalLM:
    """An untrained tiny LLaMA, its embeddings large enough for words to differ under the noise."""
    config = LlamaConfig(
        vocab_size=vocabulary, bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False, **LLAMA_ARGS
    )
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "layers" in name and parameter.ndim == 2:
            nn.init.xavier_uniform_(parameter)
    nn.init.normal_(model.get_input_embeddings().weight, std=_EMBEDDING_STD)
    return model


def train_language_model(encoder: PromptEncoder, settings: LanguageSettings) -> LlamaForCausalLM:
    """Train the language model from scratch on dialogues made up as it goes."""
    torch.manual_seed(settings.seed)
    model = build_language_model(encoder.tokenizer.vocab_size)
    reader, prompts = CodeReader(model, encoder), alignment_prompts()
    optimizer = HybridOptimizer([model], settings.steps, muon_lr=3e-3, adam_lr=3e-3)
    started, total = time.monotonic(), 0.0
    for step in range(settings.steps):
        rngs = [random.Random(f"language-{settings.seed}-{step}-{row}") for row in range(settings.batch)]
        dialogues = [make_dialogue(training_scene(rng), rng, prompts) for rng in rngs]
        with torch.autocast("cpu", torch.bfloat16):
            loss = reader.loss(dialogues)
        loss.backward()
        optimizer.step(step)
        total += loss.item()
        if (step + 1) % settings.reports == 0:
            seconds = time.monotonic() - started
            logger.info(
                "language %d/%d  loss %.3f  %.0f s", step + 1, settings.steps, total / settings.reports, seconds
            )
            total = 0.0
    return model.eval()

"""Train the tiny model: tokenizer, language model, vision, stage-1 projection; then rehearse the quick start."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from minigpt4.common.errors import MiniGPT4Error
from minigpt4.common.schema import ModelConfig
from minigpt4.conversation.template import PromptEncoder
from minigpt4.conversation.tokenizer import SentencePieceTokenizer
from minigpt4.models.loading import build_model
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.scenes.sampling import sample_split
from recipes.tiny import gates, layout
from recipes.tiny.alignment import AlignmentSettings, stage1_answers, train_projection
from recipes.tiny.answering import answer_from_codes
from recipes.tiny.dialogues import TEMPLATE, alignment_prompts
from recipes.tiny.images import draw_images
from recipes.tiny.language import CodeReader, LanguageSettings, train_language_model
from recipes.tiny.oracle import oracle_scores
from recipes.tiny.rehearsal import Rehearsal, rehearse
from recipes.tiny.sizes import (
    IMAGE_SIZE,
    NUM_QUERIES,
    PATCH_SIZE,
    QFORMER_ARGS,
    VIT_ARGS,
    VIT_BLOCKS,
    VIT_NAME,
)
from recipes.tiny.tokenizer import train_tokenizer
from recipes.tiny.vision import VisionSettings, accuracies, predict_codes, train_vision

logger = logging.getLogger("recipes.tiny")
STAGES = ("language", "vision", "stage1", "rehearsal")
STAGE1_SCENES = 400


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m recipes.tiny", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--only", choices=STAGES, nargs="+", default=STAGES, help="parts to do (default: all)")
    parser.add_argument("--language-steps", type=int, default=LanguageSettings.steps)
    parser.add_argument("--vision-steps", type=int, default=VisionSettings.steps)
    parser.add_argument("--stage1-steps", type=int, default=40)
    parser.add_argument("--pictures", type=int, default=50_000, help="scenes drawn for the vision side")
    parser.add_argument("--threads", type=int, default=2, help="more threads than free cores make it slower")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def language(args: argparse.Namespace) -> None:
    """Tokenizer and language model, gated on what it reads from scene codes."""
    folder = args.out / layout.LLAMA_FOLDER
    encoder = PromptEncoder(SentencePieceTokenizer(train_tokenizer(folder)), TEMPLATE, NUM_QUERIES)
    model = train_language_model(encoder, LanguageSettings(steps=args.language_steps, seed=args.seed))
    layout.save_language_model(model, folder)
    scenes = [placed.scene for placed in sample_split("val", 550, "oracle")]
    scores = oracle_scores(answer_from_codes(CodeReader(model, encoder)), scenes, alignment_prompts())
    gates.check("language", scores, gates.language_gates(scores))


def vision(args: argparse.Namespace) -> None:
    """ViT and Q-Former, gated on the words that the queries say."""
    drawn = draw_images("train", args.pictures, f"vision-{args.seed}", PATCH_SIZE)
    checks = draw_images("val", 1000, "vision-check", PATCH_SIZE)
    model, heads = train_vision(drawn, checks, VisionSettings(steps=args.vision_steps, seed=args.seed))
    layout.save_vision(model, args.out)
    scores = accuracies(predict_codes(model, heads, checks.images), checks.codes)
    gates.check("vision", scores, gates.VISION_GATES)


def stage1(args: argparse.Namespace) -> None:
    """A few steps of the projection on short captions, a third of them wrong."""
    torch.manual_seed(args.seed)
    model = load(args.out)
    drawn = draw_images("train", STAGE1_SCENES, f"stage1-{args.seed}", PATCH_SIZE)
    settings = AlignmentSettings(steps=args.stage1_steps, warmup=10)
    for _ in train_projection(model, drawn, stage1_answers(drawn), settings, f"stage1-{args.seed}"):
        pass
    layout.save_stage1(model, args.out)


def rehearsal(args: argparse.Namespace) -> None:
    """The quick start in memory, and its table."""
    show(rehearse(load(args.out, with_stage1=True), f"rehearsal-{args.seed}"))


def load(folder: Path, with_stage1: bool = False) -> MiniGPT4:
    """The model from the files written so far, as the project loads it."""
    config = ModelConfig(
        image_size=IMAGE_SIZE,
        vit_model=VIT_NAME,
        vit_weights=str(folder / layout.VIT_FILE),
        vit_blocks=VIT_BLOCKS,
        vit_args=VIT_ARGS,
        q_former_model=str(folder / layout.QFORMER_FILE),
        num_query_token=NUM_QUERIES,
        q_former_args=QFORMER_ARGS,
        llama_model=str(folder / layout.LLAMA_FOLDER),
        ckpt=str(folder / layout.STAGE1_FILE) if with_stage1 else None,
    )
    return build_model(config, torch.device("cpu"), torch.float32)


def show(result: Rehearsal) -> None:
    """Print the table of the rehearsal, the questions' scores and some captions."""
    table = Table("projection", *next(iter(result.rows.values())), title="unseen scenes")
    for name, row in result.rows.items():
        table.add_row(name, *(f"{value:.3f}" for value in row.values()))
    console = Console(width=140)
    console.print(table)
    console.print("questions: " + ", ".join(f"{kind} {value:.2f}" for kind, value in result.questions.items()))
    for name, text in result.blank.items():
        console.print(f"{name} image: {text}")
    for text in result.samples:
        console.print(f"- {text}")


def main(argv: list[str] | None = None) -> int:
    """Do the parts asked for, one after the other."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    parts = {"language": language, "vision": vision, "stage1": stage1, "rehearsal": rehearsal}
    try:
        for name in STAGES:
            if name in args.only:
                started = time.monotonic()
                parts[name](args)
                logger.info("%s: %.0f s", name, time.monotonic() - started)
    except MiniGPT4Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Train the frozen parts of the tiny MiniGPT-v2, beginning with those of the tiny MiniGPT-4."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from minigpt4.common.checkpoint import write_checkpoint
from minigpt4.common.errors import MiniGPT4Error
from minigpt4.common.schema import GenerationConfig
from minigpt4.conversation.template import PromptEncoder, with_image_tag
from minigpt4.conversation.tokenizer import SentencePieceTokenizer
from minigpt4.models.generation import Generator
from minigpt4.scenes.sampling import sample_split
from recipes.tiny import gates, layout
from recipes.tiny_v2.dialogues import TEMPLATE
from recipes.tiny_v2.language import (
    LESSONS,
    StripReader,
    extend_vocabulary,
    load_language_model,
    train_language_model,
)
from recipes.tiny_v2.oracle import task_scores
from recipes.tiny_v2.strips import NUM_STRIPS, strip_scene
from recipes.tiny_v2.tokenizer import extend_tokenizer
from recipes.tiny_v2.vision import StripVision, VisionSettings, draw_strips, strip_scores, train_vision

logger = logging.getLogger("recipes.tiny_v2")
PARTS = ("language", "vision")
SOURCE = Path(__file__).resolve().parents[2] / "minigpt4" / "assets" / "tiny"
GATES = {
    "language": {
        "caption caption": 0.9,
        "vqa count": 0.9,
        "vqa background": 0.95,
        "vqa colour": 0.9,
        "vqa shape": 0.9,
        "vqa size": 0.9,
        "vqa place": 0.85,
        "vqa presence": 0.85,
        "vqa relation": 0.85,
        "refer name": 0.85,
        "identify object": 0.85,
        "detection all": 0.8,
    },
    "vision": {"object": 0.98, "size": 0.96, "colour": 0.96, "shape": 0.96, "background": 0.99, "sides": 0.975},
}
_GREEDY = GenerationConfig(max_new_tokens=90)
_ROWS = 64


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m recipes.tiny_v2", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="parts to do (default: all)")
    for name, lesson in LESSONS.items():
        parser.add_argument(f"--{name}-steps", type=int, default=lesson.steps)
    parser.add_argument("--vision-steps", type=int, default=VisionSettings.steps)
    parser.add_argument("--images", type=int, default=12_000, help="scenes drawn for the vision side")
    parser.add_argument("--threads", type=int, default=2, help="more threads than free cores make it slower")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def language(args: argparse.Namespace) -> None:
    """Tokenizer, and a language model that reads codes, answers all tasks and finds an object that is named."""
    folder = args.out / layout.LLAMA_FOLDER
    tokenizer = SentencePieceTokenizer(extend_tokenizer(SOURCE / layout.LLAMA_FOLDER, folder))
    torch.manual_seed(args.seed)
    model = load_language_model(SOURCE / layout.LLAMA_FOLDER)
    extend_vocabulary(model, tokenizer.vocab_size)
    reader = StripReader(model, PromptEncoder(tokenizer, TEMPLATE, NUM_STRIPS))
    for name, lesson in LESSONS.items():
        logger.info("%s", name)
        train_language_model(reader, replace(lesson, steps=getattr(args, f"{name}_steps"), seed=args.seed))
        layout.save_language_model(reader.model, folder)
    shown = [strip_scene(placed) for placed in sample_split("val", 100, "oracle")]
    generator = Generator(reader.model, tokenizer, _GREEDY, TEMPLATE.end)

    def answer(rows: Sequence[int], questions: Sequence[str]) -> list[str]:
        tagged = [with_image_tag(question) for question in questions]
        embeds = reader.prompt_embeds([shown[row] for row in rows], tagged)
        return [found.text for found in generator.generate(embeds, _ROWS)]

    gates.check("language", task_scores(answer, [s.scene for s in shown], "oracle"), GATES["language"])


def vision(args: argparse.Namespace) -> None:
    """The vision encoder, gated on the words and sides that its strips tell."""
    drawn = draw_strips("train", args.images, f"vision-v2-{args.seed}")
    checks = draw_strips("val", 400, "vision-v2-check")
    torch.manual_seed(args.seed)
    model = StripVision(SOURCE / layout.VIT_FILE)
    train_vision(model, drawn, checks, VisionSettings(steps=args.vision_steps, seed=args.seed))
    args.out.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().to(torch.float16) for name, tensor in model.encoder.backbone.state_dict().items()}
    write_checkpoint(args.out / layout.VIT_FILE, state)
    gates.check("vision", strip_scores(model, checks), GATES["vision"])


def main(argv: list[str] | None = None) -> int:
    """Do the parts asked for, one after the other."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    parts = {"language": language, "vision": vision}
    try:
        for name in PARTS:
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

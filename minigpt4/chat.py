"""Talk about a picture in the terminal: `python -m minigpt4.chat --cfg-path X --image PICTURE`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from minigpt4.common.cli import exit_on_error
from minigpt4.common.config import add_config_arguments, load_config
from minigpt4.common.console import config_table, console
from minigpt4.common.schema import Config
from minigpt4.conversation.dialogue import Dialogue


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(prog="python -m minigpt4.chat", description=__doc__)
    add_config_arguments(parser)
    parser.add_argument("--image", required=True, metavar="PICTURE", help="the picture to talk about")
    parser.add_argument("--ckpt", metavar="FILE", help="checkpoint with the projection (default: model.ckpt)")
    parser.add_argument("--ask", nargs="+", metavar="QUESTION", help="questions to put, instead of asking for them")
    return parser


def answers(cfg: Config, image: str | Path, questions: Iterator[str]) -> Iterator[str]:
    """Answer one question after the other about a picture, each knowing those before it.

    Args:
        cfg: The configuration; `evaluation.generation` and `evaluation.precision` count here too.
        image: The picture.
        questions: Put when the answer before has been taken.

    Raises:
        MiniGPT4Error: A picture, path or checkpoint that cannot be used, or a conversation longer than the context.
    """
    from minigpt4.common.dist import start_processes
    from minigpt4.models.loading import build_model
    from minigpt4.processors.image import ImageProcessor, load_picture
    from minigpt4.runners.precision import evaluation_dtype

    pixels = load_picture(image, ImageProcessor(cfg.model.image_size))[None]
    device = start_processes(cfg.run.device).device
    model = build_model(cfg.model, device, evaluation_dtype(cfg.evaluation.precision, device))
    queries = model.encode_queries(pixels.to(device))
    dialogue = Dialogue(model.encoder.template)
    for question in questions:
        prompt = model.encoder.rendered(dialogue.prompt(question), source="conversation")
        (answer,) = model.generate([prompt], cfg.evaluation.generation, queries=queries)
        dialogue.add(question, answer.text)
        yield answer.text


def _typed() -> Iterator[str]:
    """Questions from the keyboard, to the end of input."""
    while True:
        try:
            question = input("you: ").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if question:
            yield question


@exit_on_error()
def main(arguments: Sequence[str] | None = None) -> None:
    """Print the answers to questions from the command line or the keyboard."""
    args = build_parser().parse_args(arguments)
    loaded = load_config(args.cfg_path, args.options)
    out = console()
    if args.print_config:
        out.print(config_table(loaded))
        return
    cfg = loaded.config
    if args.ckpt:
        cfg = replace(cfg, model=replace(cfg.model, ckpt=args.ckpt))
    for answer in answers(cfg, args.image, iter(args.ask) if args.ask else _typed()):
        out.print(answer, markup=False)


if __name__ == "__main__":
    main()

"""Chat about images in the terminal: `python -m minigpt4.chat --image IMAGE`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

from minigpt4.common.cli import add_config_arguments, exit_on_error, read_config


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(prog="minigpt4 chat", description=__doc__)
    add_config_arguments(parser, required=False)
    parser.add_argument("--image", required=True, nargs="+", metavar="IMAGE", help="the images to talk about")
    parser.add_argument("--ckpt", metavar="FILE", help="checkpoint with the projection (default: model.ckpt)")
    parser.add_argument(
        "--ask", nargs="+", metavar="QUESTION", help="questions to answer instead of prompting for them"
    )
    return parser


@exit_on_error()
def main(arguments: Sequence[str] | None = None) -> None:
    """Answer questions from the command line or the keyboard, each in the light of those before it."""
    args = build_parser().parse_args(arguments)
    cfg = read_config(args).config
    from minigpt4.processors.image import open_image

    images = [open_image(path) for path in args.image]  # a wrong path is found before minutes of loading
    from minigpt4.api import from_config

    chat = from_config(cfg, args.ckpt).chat()
    for question in iter(args.ask) if args.ask else _typed_questions():
        _print_growing(chat.stream(question, () if chat.turns else images))
        if chat.dropped:
            sys.stderr.write(f"(the {chat.dropped} oldest turns no longer fit and were left out)\n")


def _typed_questions() -> Iterator[str]:
    """Questions from the keyboard until the end of input."""
    while True:
        try:
            question = input("you: ").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if question:
            yield question


def _print_growing(answers: Iterator[str]) -> None:
    """Print an answer as it grows, then a line break."""
    shown = ""
    for text in answers:
        if text.startswith(shown):
            sys.stdout.write(text[len(shown) :])
            sys.stdout.flush()
            shown = text
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()

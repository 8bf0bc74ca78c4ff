"""SideBySideChat about a picture in the terminal: `python -m minigpt4.chat --image PICTURE`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

from minigpt4.common.cli import add_config_arguments, exit_on_error, read_config


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(prog="python -m minigpt4.chat", description=__doc__)
    add_config_arguments(parser, required=False)
    parser.add_argument("--image", required=True, nargs="+", metavar="PICTURE", help="the pictures to talk about")
    parser.add_argument("--ckpt", metavar="FILE", help="checkpoint with the projection (default: model.ckpt)")
    parser.add_argument("--ask", nargs="+", metavar="QUESTION", help="questions to put, instead of asking for them")
    return parser


def _typed() -> Iterator[str]:
    """Questions from the keyboard, to the end of input."""
    while True:
        try:
            question = input("you: ").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if question:
            yield question


def _show(growing: Iterator[str]) -> None:
    """Write an answer as it grows, and a line's end."""
    shown = ""
    for text in growing:
        if text.startswith(shown):
            sys.stdout.write(text[len(shown) :])
            sys.stdout.flush()
            shown = text
    sys.stdout.write("\n")


@exit_on_error()
def main(arguments: Sequence[str] | None = None) -> None:
    """Answer questions from the command line or the keyboard, each answer knowing those before it."""
    args = build_parser().parse_args(arguments)
    loaded = read_config(args)
    from minigpt4.processors.image import open_image

    pictures = [open_image(path) for path in args.image]  # a wrong path is found before minutes of loading
    from minigpt4.api import from_config

    chat = from_config(loaded.config, args.ckpt).chat()
    for question in iter(args.ask) if args.ask else _typed():
        _show(chat.stream(question, () if chat.turns else pictures))
        if chat.dropped:
            sys.stderr.write(f"(the {chat.dropped} oldest turns no longer fit and were left out)\n")


if __name__ == "__main__":
    main()

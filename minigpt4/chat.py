"""Chat about images in the terminal."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from minigpt4.common.boxes import TASKS, with_task
from minigpt4.common.cli import add_config_arguments, exit_on_error, read_config, require_files, run_files
from minigpt4.common.errors import DataError
from minigpt4.common.files import near_path

if TYPE_CHECKING:
    from minigpt4.api import Chat

LEAVE = ("/quit", "/exit", "/q")
HELP = """/restart  forget the conversation, and start again with the same images
/help     show this list
/quit     leave, as does Ctrl-D; Ctrl-C ends an answer early
"""


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(prog="minigpt4 chat", description=__doc__)
    add_config_arguments(parser, required=False)
    parser.add_argument("--image", required=True, nargs="+", metavar="IMAGE", help="the images to talk about")
    parser.add_argument("--task", choices=TASKS, help="put [TASK] in front of each question, for MiniGPT-v2")
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
    require_files(run_files(cfg.model, checkpoints=[args.ckpt] if args.ckpt else []))
    for path in args.image:
        if not os.path.exists(path):
            raise DataError(f"image {path} does not exist{near_path(path)}")
    from minigpt4.conversation.template import check_task
    from minigpt4.processors.image import open_image

    check_task(args.task, cfg.model)
    images = [open_image(path) for path in args.image]  # a broken image is found before minutes of loading
    from minigpt4.api import from_config

    chat = from_config(cfg, args.ckpt).chat()
    if args.ask:
        for question in args.ask:
            _answer(chat, with_task(question, args.task), images)
        return
    sys.stderr.write(f"{_greeting(chat)}\n")
    for line in _typed_lines():
        command = line.lower()
        if command in LEAVE:
            return
        if command == "/restart":
            chat.restart()
            sys.stderr.write("(the conversation starts again with the same images)\n")
        elif line.startswith("/"):
            sys.stderr.write(HELP if command == "/help" else f"there is no command {line}\n{HELP}")
        else:
            try:
                _answer(chat, with_task(line, args.task), images)
            except DataError as error:  # such as a question that is too long
                sys.stderr.write(f"error: {error}\n")


def _greeting(chat: Chat) -> str:
    """What talks here, and how to leave."""
    lines = [
        chat.loaded.summary,
        chat.loaded.note,
        "Ask about the image; /help lists the commands, /quit or Ctrl-D leaves.",
    ]
    return "\n".join(filter(None, lines))


def _answer(chat: Chat, question: str, images: Sequence[Any]) -> None:
    """Print the answer to the next question, the first of which brings the images; Ctrl-C ends an answer early."""
    try:
        _print_growing(chat.stream(question, () if chat.turns else images))
    except KeyboardInterrupt:
        sys.stdout.write("\n")
    if chat.dropped:
        turns = "oldest turn was" if chat.dropped == 1 else f"{chat.dropped} oldest turns were"
        sys.stderr.write(f"(the {turns} left out of the prompt, which would not fit the model's context)\n")


def _typed_lines() -> Iterator[str]:
    """Lines from the keyboard until the end of input."""
    while True:
        try:
            line = input("you: ").strip()
        except (EOFError, KeyboardInterrupt):
            sys.stderr.write("\n")
            return
        if line:
            yield line


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

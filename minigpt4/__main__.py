"""`minigpt4 COMMAND ...` or `python -m minigpt4 COMMAND ...`: all commands under one name; one of them is imported."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minigpt4.common.errors import did_you_mean
from minigpt4.common.files import PROJECT

PROGRAM = "minigpt4"


@dataclass(frozen=True, slots=True)
class Command:
    """What a command runs.

    Attributes:
        target: a module, or the path of a script in the checkout, with a function `main()`.
        what: one line for the list of commands.
    """

    target: str
    what: str


COMMANDS = {
    "prepare": Command(
        "minigpt4.datasets.flickr30k_prepare", "turn Flickr30k's annotations into the JSON that training reads"
    ),
    "check": Command("minigpt4.datasets.check", "read every row of a dataset, open every image, name the bad ones"),
    "train": Command("train.py", "train the projection; several GPUs: torchrun ... -m minigpt4 train"),
    "eval": Command("minigpt4.evaluate", "captions, or answers to questions, of several checkpoints and their scores"),
    "eval-vqa": Command("eval_scripts/eval_vqa.py", "answers to questions: VQA's accuracy, exact match, choices, POPE"),
    "eval-ref": Command("eval_scripts/eval_ref.py", "boxes of the things that expressions refer to"),
    "plan": Command("minigpt4.plan", "what a run needs: memory, cards that hold it, steps, time and disk"),
    "precompute": Command("minigpt4.runners.precompute", "fill the feature caches of a run, without training"),
    "score": Command("minigpt4.evaluation.caption", "score the captions of any program against their references"),
    "score-answers": Command("minigpt4.evaluation.questions", "score the saved answers of an evaluation by questions"),
    "score-structured": Command("minigpt4.evaluation.structured", "score answers that are boxes or triples"),
    "chat": Command("minigpt4.chat", "talk about an image in the terminal"),
    "demo": Command("demo.py", "talk about images on a page in the browser"),
    "generate": Command("minigpt4.generate", "answers about folders of images, or about rows with questions"),
    "doctor": Command("minigpt4.doctor", "what this machine lacks for a run: packages, Java, GPU, disk, files"),
    "from-upstream": Command("minigpt4.from_upstream", "rewrite a configuration file of the original MiniGPT-4"),
    "export": Command("minigpt4.export.__main__", "a folder that transformers runs without this package, verified"),
    "serve": Command("minigpt4.serve.__main__", "answer many requests at once, for every client of OpenAI's API"),
    "curate": Command("minigpt4.curate.__main__", "make stage 2's data: describe, refine, filter, review, export"),
}


def usage() -> str:
    """The list of commands."""
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:{width}}  {command.what}" for name, command in COMMANDS.items())
    return f"usage: {PROGRAM} COMMAND ...\n\n{listed}\n\n{PROGRAM} COMMAND --help shows a command's arguments.\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command with the rest of the arguments.

    Args:
        arguments: name of the command and its arguments; None: those of the command line.

    Returns:
        Exit status.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = given[0] if given else "--help"
    if name in ("-h", "--help", "help"):
        sys.stdout.write(usage())
        return 0 if given else 2
    if name not in COMMANDS:
        sys.stderr.write(f"error: {PROGRAM}: unknown command '{name}'; {did_you_mean(name, COMMANDS)}\n")
        return 2
    sys.argv = [f"{PROGRAM} {name}", *given[1:]]  # what argparse reads; the first is the program's name in its messages
    return load(COMMANDS[name].target).main() or 0


def load(target: str) -> Any:
    """The module that a command runs, by its name or its path in the checkout."""
    if not target.endswith(".py"):
        return importlib.import_module(target)
    path = PROJECT / target
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # classes of the script can then be pickled
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())

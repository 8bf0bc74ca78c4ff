"""Answers about many pictures: `python -m minigpt4.generate --images FOLDER --out answers.jsonl`.

Also under torchrun. Started again after it was interrupted, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt4.common.cli import exit_on_error
from minigpt4.common.config import LoadedConfig, add_config_arguments, load_config
from minigpt4.common.console import config_table, console
from minigpt4.common.errors import ConfigError, DataError
from minigpt4.common.files import write_atomically
from minigpt4.runners.answer_files import AnswerFile, Question, questions_of_files, questions_of_jsonl, row_of

if TYPE_CHECKING:
    from minigpt4.api import LoadedModel
    from minigpt4.common.dist import Processes


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m minigpt4.generate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser, required=False)
    parser.add_argument("--ckpt", metavar="FILE", help="checkpoint with the projection (default: model.ckpt)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", nargs="+", metavar="PATH", help="pictures, or folders of them")
    source.add_argument("--jsonl", metavar="FILE", help='rows of {"image": ..., "question": ..., "id": ...}')
    parser.add_argument("--prompt", metavar="TEXT", help="question where a row has none (default: evaluation.prompt)")
    parser.add_argument("--out", required=True, metavar="FILE", help="JSONL file of the answers")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="pictures at a time (default: 8)")
    return parser


@exit_on_error()
def main(arguments: Sequence[str] | None = None) -> None:
    """Answer what has no answer yet, and say how many there are."""
    args = build_parser().parse_args(arguments)
    loaded = load_config(args.cfg_path, args.options)
    if args.print_config:
        console().print(config_table(loaded))
        return
    if args.batch_size < 1:
        raise ConfigError(f"--batch-size: {args.batch_size} should be at least 1")
    from minigpt4.api import DESCRIBE
    from minigpt4.common.dist import start_processes
    from minigpt4.common.log import set_up_logging

    prompt = args.prompt or loaded.config.evaluation.prompt or DESCRIBE
    asked = questions_of_files(args.images, prompt) if args.images else questions_of_jsonl(args.jsonl, prompt)
    processes = start_processes(loaded.config.run.device)
    set_up_logging(processes.rank)
    file = AnswerFile(args.out, asked)
    processes.from_main(lambda: _same_settings(file.path, loaded, args.ckpt))
    done = processes.from_main(file.gather)
    _answer_rest(file, done, loaded, args, processes)
    processes.gather(None)  # all parts are complete
    answered = processes.from_main(file.gather)
    processes.leave()
    if processes.is_main:
        errors = sum('"error": ' in line for line in file.path.read_text(encoding="utf-8").splitlines())
        console().print(f"{file.path}: {len(answered)} rows, {len(done)} of them from before, {errors} with an error")


def _same_settings(path: Path, loaded: LoadedConfig, ckpt: str | None) -> None:
    """Refuse to go on with a file that another model or other settings began."""
    kept = path.with_name(f"{path.name}.settings.json")
    values = {
        "model": loaded.resolved["model"] | ({"ckpt": ckpt} if ckpt else {}),
        "generation": loaded.resolved["evaluation"]["generation"],
    }
    text = json.dumps(values, indent=1) + "\n"
    begun = path.is_file() or any(path.parent.glob(f"{path.name}.part*"))
    if begun and kept.is_file() and kept.read_text(encoding="utf-8") != text:
        raise DataError(f"{path} was begun with other settings ({kept}); choose another --out, or delete both files")
    write_atomically(kept, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _answer_rest(
    file: AnswerFile, done: set[str], loaded: LoadedConfig, args: argparse.Namespace, processes: Processes
) -> None:
    from tqdm import tqdm

    from minigpt4.api import from_config
    from minigpt4.runners.rng import seed_all

    rest = [item for item in file.asked if item.id not in done]
    groups = [rest[start : start + args.batch_size] for start in range(0, len(rest), args.batch_size)]
    mine = groups[processes.rank :: processes.world_size]
    if not mine:
        return
    model = from_config(loaded.config, args.ckpt, device=str(processes.device))
    seed_all(loaded.config.evaluation.seed + processes.rank)
    total = sum(map(len, mine))
    with tqdm(total=total, desc="answers", unit="picture", disable=None if processes.is_main else True) as bar:
        for group in mine:
            file.append(processes.rank, answer_group(model, group))
            bar.update(len(group))


def answer_group(model: LoadedModel, group: Sequence[Question]) -> list[dict[str, str]]:
    """Rows with the answers; a picture or question that cannot be used makes a row with its error."""
    try:
        answers = model.describe([item.image for item in group], [item.prompt for item in group], batch_size=len(group))
    except DataError as error:
        if len(group) == 1:
            return [row_of(group[0], error=str(error))]
        return [row for item in group for row in answer_group(model, [item])]
    return [row_of(item, answer=answer) for item, answer in zip(group, answers, strict=True)]


if __name__ == "__main__":
    main()

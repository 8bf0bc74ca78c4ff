"""Answers about many images, in a file of JSON lines.

Also runs under torchrun. After an interruption, the same command resumes.
"""

from __future__ import annotations

import argparse
import errno
import glob
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt4.common.boxes import TASKS, with_task
from minigpt4.common.cli import (
    add_config_arguments,
    console,
    exit_on_error,
    read_config,
    require_files,
    run_files,
)
from minigpt4.common.errors import ConfigError, DataError, shown
from minigpt4.common.files import (
    IMAGE_SUFFIXES,
    hold,
    near_path,
    parse_json,
    read_appended,
    read_lines,
    read_text,
    remove_temporary_files,
    replace_lone_surrogates,
    write_text,
    writing,
)
from minigpt4.common.schema import DESCRIBE

if TYPE_CHECKING:
    from minigpt4.api import LoadedModel

_TEXT_FIELDS = ("image", "question", "prompt", "id")


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="minigpt4 generate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser, required=False)
    parser.add_argument("--ckpt", metavar="FILE", help="checkpoint with the projection (default: model.ckpt)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", nargs="+", metavar="PATH", help="images, or folders of them")
    source.add_argument(
        "--jsonl",
        metavar="FILE",
        help='rows of {"image": ..., "question": ..., "id": ...}; relative images start at the folder of FILE',
    )
    parser.add_argument("--task", choices=TASKS, help="put [TASK] in front of each question, for MiniGPT-v2")
    parser.add_argument("--prompt", metavar="TEXT", help="question where a row has none (default: evaluation.prompt)")
    parser.add_argument("--out", required=True, metavar="FILE", help="JSONL file of the answers")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="images at a time (default: 8)")
    parser.add_argument("--retry-errors", action="store_true", help="ask again the rows that have an error in --out")
    return parser


@exit_on_error()
def main(arguments: Sequence[str] | None = None) -> int:
    """Answer every question that has no row yet, and print how many were answered, how many failed, and why the first.

    Returns:
        Exit status: 1 where not one row has an answer.
    """
    args = build_parser().parse_args(arguments)
    loaded = read_config(args)
    if args.batch_size < 1:
        raise ConfigError(f"--batch-size: {args.batch_size} should be at least 1")
    cfg = loaded.config
    prompt = args.prompt or cfg.evaluation.prompt or DESCRIBE
    questions = questions_of_files(args.images, prompt) if args.images else questions_of_jsonl(args.jsonl, prompt)
    questions = [replace(question, prompt=with_task(question.prompt, args.task)) for question in questions]
    require_files(run_files(cfg.model, checkpoints=[args.ckpt] if args.ckpt else []))
    from minigpt4.conversation.template import check_task

    check_task(args.task, cfg.model)
    import torch

    from minigpt4.api import from_config
    from minigpt4.common.distributed import start_processes
    from minigpt4.common.logging import Progress, set_up_logging
    from minigpt4.models.loading import choose_precision

    settings = {
        "model": loaded.resolved["model"] | ({"ckpt": args.ckpt} if args.ckpt else {}),
        "generation": loaded.resolved["evaluation"]["generation"],
    }
    processes = start_processes(cfg.run.device)
    set_up_logging(processes.rank)
    file = AnswerFile(args.out, questions)
    with ExitStack() as held:
        processes.run_on_main(lambda: file.begin(settings, held))
        before = processes.run_on_main(lambda: file.merge_parts(keep_errors=not args.retry_errors))
        rest = [question for question in questions if question.id not in before]
        batches = [rest[start : start + args.batch_size] for start in range(0, len(rest), args.batch_size)]
        mine = batches[processes.rank :: processes.world_size]
        if rest:
            precision = processes.run_on_main(lambda: choose_precision(cfg.model, processes.device))
        if mine:
            model = from_config(cfg, args.ckpt, device=str(processes.device), precision=precision.frozen)
            torch.manual_seed(cfg.evaluation.seed + processes.rank)
            with Progress("answers", sum(map(len, mine)), "questions") as progress:
                for batch in mine:
                    file.append(processes.rank, answer_batch(model, batch))
                    progress.advance(len(batch))
        processes.gather(None)  # all parts are complete
        outcomes = processes.run_on_main(file.merge_parts)
    processes.shutdown()
    errors = [error for error in outcomes.values() if error is not None]
    if processes.is_main:
        done = list(before.values()).count(None)
        counts = f"{len(outcomes) - len(errors) - done} answered, {done} already done, {len(errors)} failed"
        lines = [f"{file.path}: {len(outcomes)} rows: {counts}"]
        if errors:
            lines.append(f"the first that failed: {errors[0]}; once it is fixed, --retry-errors asks these rows again")
        console().print("\n".join(lines), markup=False, soft_wrap=True)
    return int(len(errors) == len(outcomes))


@dataclass(frozen=True, slots=True)
class Question:
    """A question about one image.

    Attributes:
        id: its name in the output, unique.
        image: path of the image.
        prompt: its text.
    """

    id: str
    image: str
    prompt: str


def questions_of_files(paths: Sequence[str], prompt: str) -> list[Question]:
    """One question about each image; folders are searched recursively, in the order of file names.

    Raises:
        DataError: A path that does not exist, or a folder without an image.
    """
    questions = []
    for path in map(Path, paths):
        if os.path.isdir(path):  # unlike pathlib, also of names that no file can have
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise DataError(f"--images: the folder {path} holds no image ({', '.join(IMAGE_SUFFIXES)})")
            questions += [Question(str(file), str(file), prompt) for file in found]
        elif os.path.exists(path):
            questions.append(Question(str(path), str(path), prompt))
        else:
            raise DataError(f"--images: {path} does not exist{near_path(path)}")
    return _with_unique_ids(questions)


def questions_of_jsonl(path: str | Path, prompt: str) -> list[Question]:
    """The rows of a JSONL file: `image`, relative to the file, and optionally `question` (or `prompt`) and `id`.

    Raises:
        DataError: The file cannot be read or has no row, a row is not such an object, or an id occurs twice.
    """
    folder = Path(path).parent
    questions, ids = [], set()
    for number, line in read_lines(path):
        where = f"{path}, line {number}"
        try:
            row = parse_json(line)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: an object is expected, found {line[:60]!r}")
        if "image" not in row:
            raise DataError(f'{where}: no \'image\'; write {{"image": PATH, "question": TEXT}}')
        wrong = [key for key in _TEXT_FIELDS if key in row and not isinstance(row[key], str | int)]
        if wrong:
            raise DataError(f"{where}: '{wrong[0]}' is {shown(row[wrong[0]])}, should be text")
        if "id" in row and str(row["id"]) in ids:
            raise DataError(f"{where}: the id '{row['id']}' occurs twice")
        ids.add(str(row.get("id", "")))
        image = str(row["image"])
        question = replace_lone_surrogates(str(row.get("question", row.get("prompt", prompt))))
        questions.append(Question(str(row.get("id", image)), str(folder / image), question))
    if not questions:
        raise DataError(f"--jsonl: {path}: nothing to answer")
    return _with_unique_ids(questions)


def _with_unique_ids(questions: Sequence[Question]) -> list[Question]:
    """The questions with ids that differ and that UTF-8 can encode: the second about `a.png` is `a.png#2`."""
    seen: dict[str, int] = {}
    unique = []
    for question in questions:
        name = replace_lone_surrogates(question.id)
        seen[name] = count = seen.get(name, 0) + 1
        unique.append(replace(question, id=f"{name}#{count}" if count > 1 else name))
    return unique


def answer_batch(model: LoadedModel, batch: Sequence[Question]) -> list[dict[str, str]]:
    """Rows with the answers; an image or question that cannot be used makes a row with its error."""
    images, prompts = [question.image for question in batch], [question.prompt for question in batch]
    try:
        answers = model.describe(images, prompts, batch_size=len(batch))
    except DataError as error:
        if len(batch) == 1:
            return [row_of(batch[0], error=str(error))]
        return [row for question in batch for row in answer_batch(model, [question])]
    return [row_of(question, answer=answer) for question, answer in zip(batch, answers, strict=True)]


def row_of(question: Question, **outcome: str) -> dict[str, str]:
    """A row of the output: the question with `answer` or `error`, as text that UTF-8 can encode."""
    return {key: replace_lone_surrogates(value) for key, value in (asdict(question) | outcome).items()}


class AnswerFile:
    """The output. While processes work, each appends to a part of its own beside it: `{name}.part{rank}`.

    Args:
        path: the file.
        questions: all questions, in the order of the output.
    """

    def __init__(self, path: str | Path, questions: Sequence[Question]) -> None:
        self.path = Path(path)
        self.questions = questions

    def begin(self, settings: Mapping[str, Any], held: ExitStack) -> None:
        """Keep the settings beside the file, or compare them with those that its first answers were made with.

        Args:
            settings: what the answers depend on besides the questions.
            held: keeps the file for this command until it is closed.

        Raises:
            DataError: The file was begun with another model or other settings, cannot be written, or is being written
                by another command.
        """
        kept = self.path.with_name(f"{self.path.name}.settings.json")
        text = json.dumps(settings, indent=1) + "\n"
        with writing(self.path):
            if self.path.is_dir():
                raise IsADirectoryError(errno.EISDIR, "it is a folder; name a file")
            held.enter_context(hold(self.path.with_name(f"{self.path.name}.lock"), self.path))
            remove_temporary_files(self.path.parent, f"{glob.escape(self.path.name)}*")
            begun = self.path.is_file() or self._parts()
            if begun and kept.is_file() and read_text(kept) != text:
                raise DataError(
                    f"{self.path} was begun with other settings ({kept}); choose another --out, or delete both files"
                )
            write_text(kept, text)

    def merge_parts(self, keep_errors: bool = True) -> dict[str, str | None]:
        """Merge the file and its parts into one file in the order of the questions.

        Args:
            keep_errors: keep rows with an error; otherwise they are left out, and count as not asked yet.

        Returns:
            The ids of its rows with the error of each; None: it has an answer.

        Raises:
            DataError: A damaged line, rows that answer other questions, or a file that cannot be written.
        """
        parts = self._parts()
        rows = {row["id"]: row for file in (self.path, *parts) for row in _rows(file)}
        expected = {row["id"]: row for row in map(row_of, self.questions)}
        for name, row in rows.items():
            if name not in expected or not expected[name].items() <= row.items():
                raise DataError(
                    f"{self.path} holds a row of other questions ('{name}'); choose another --out, or delete the file"
                )
        if not keep_errors:
            rows = {name: row for name, row in rows.items() if "answer" in row}
        if parts or self.path.is_file():
            ordered = (rows[name] for name in expected if name in rows)
            with writing(self.path):
                write_text(self.path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ordered))
        for part in parts:
            part.unlink()
        return {name: None if "answer" in row else str(row.get("error")) for name, row in rows.items()}

    def append(self, rank: int, rows: Iterable[Mapping[str, str]]) -> None:
        """Add rows to the part of the process `rank`.

        Raises:
            DataError: It cannot be written; the rows before are kept, and the same command resumes.
        """
        part = self.path.with_name(f"{self.path.name}.part{rank}")
        with writing(part), part.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def _parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{glob.escape(self.path.name)}.part[0-9]*"))


def _rows(file: Path) -> list[dict[str, Any]]:
    rows = []
    for number, row in read_appended(file):
        if not isinstance(row, dict) or not isinstance(row.get("id"), str):
            raise DataError(f"{file}, line {number}: no 'id'; this is not a file of answers, choose another --out")
        rows.append(row)
    return rows


if __name__ == "__main__":
    sys.exit(main())

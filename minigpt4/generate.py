"""Answers about many pictures: `python -m minigpt4.generate --images FOLDER --out answers.jsonl`.

Also under torchrun. Started again after it was interrupted, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt4.common.cli import add_config_arguments, console, exit_on_error, read_config
from minigpt4.common.config import LoadedConfig
from minigpt4.common.errors import ConfigError, DataError
from minigpt4.common.files import IMAGE_SUFFIXES, replace_lone_surrogates, write_atomically

if TYPE_CHECKING:
    from minigpt4.api import LoadedModel
    from minigpt4.common.distributed import Processes

_TEXT_FIELDS = ("image", "question", "prompt", "id")


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about one picture.

    Attributes:
        id: Names it in the output.
        image: Path of the picture.
        prompt: The question.
    """

    id: str
    image: str
    prompt: str


def questions_of_files(paths: Sequence[str], prompt: str) -> list[Question]:
    """One question about each picture, folders searched through in the order of names.

    Raises:
        DataError: A path that does not exist, or a folder without a picture.
    """
    asked = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise DataError(f"--images: the folder {path} holds no picture ({', '.join(IMAGE_SUFFIXES)})")
            asked += [Question(str(file), str(file), prompt) for file in found]
        elif path.exists():
            asked.append(Question(str(path), str(path), prompt))
        else:
            raise DataError(f"--images: {path} does not exist")
    return _named(asked, "--images")


def questions_of_jsonl(path: str | Path, prompt: str) -> list[Question]:
    """The rows of a JSONL file: `image`, relative to the file, and optionally `question` (or `prompt`) and `id`.

    Raises:
        DataError: The file does not exist, or a row is no such object, or an id comes twice.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"--jsonl: {file} does not exist")
    asked, named = [], set()
    for number, line in enumerate(_text(file).split("\n"), 1):
        if not line.strip():
            continue
        row = _object(line, f"{file}, line {number}")
        if "image" not in row:
            raise DataError(f'{file}, line {number}: no \'image\'; write {{"image": PATH, "question": TEXT}}')
        wrong = [key for key in _TEXT_FIELDS if key in row and not isinstance(row[key], str | int)]
        if wrong:
            raise DataError(f"{file}, line {number}: '{wrong[0]}' is {row[wrong[0]]!r}, should be text")
        if "id" in row and str(row["id"]) in named:
            raise DataError(f"{file}, line {number}: the id '{row['id']}' comes twice")
        named.add(str(row.get("id", "")))
        image = str(row["image"])
        question = replace_lone_surrogates(str(row.get("question", row.get("prompt", prompt))))
        asked.append(Question(str(row.get("id", image)), str(file.parent / image), question))
    return _named(asked, f"--jsonl: {file}")


def _named(asked: Sequence[Question], source: str) -> list[Question]:
    """The questions under names that differ: the second about `a.png` is `a.png#2`."""
    if not asked:
        raise DataError(f"{source}: nothing to answer")
    seen: dict[str, int] = {}
    named = []
    for item in asked:
        seen[item.id] = seen.get(item.id, 0) + 1
        again = f"#{seen[item.id]}" if seen[item.id] > 1 else ""
        named.append(Question(item.id + again, item.image, item.prompt))
    return named


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as UTF-8 text: {error}") from error


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: no JSON ({error})") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: an object is expected, found {line[:60]!r}")
    return row


class AnswerFile:
    """The output, whole after each run; while processes work, each appends to a part beside it.

    Args:
        path: The file.
        asked: All questions, in the order of the output.
    """

    def __init__(self, path: str | Path, asked: Sequence[Question]) -> None:
        self.path = Path(path)
        self.asked = asked

    def part(self, rank: int) -> Path:
        """Where a process writes."""
        return self.path.with_name(f"{self.path.name}.part{rank}")

    def gather(self) -> set[str]:
        """Bring what is there into one file, in the order of the questions, and say what is there.

        A last line that was only half written is left out, so that its question is asked again.

        Returns:
            Ids of the questions that have an answer or an error.

        Raises:
            DataError: A damaged line in the middle, or rows that answer other questions.
        """
        parts = sorted(self.path.parent.glob(f"{self.path.name}.part[0-9]*"))
        files = [file for file in (self.path, *parts) if file.is_file()]
        rows = {row["id"]: row for file in files for row in _rows(file)}
        expected = {item.id: item for item in self.asked}
        for name, row in rows.items():
            item = expected.get(name)
            if item is None or (item.image, item.prompt) != (row.get("image"), row.get("prompt")):
                raise DataError(
                    f"{self.path} holds a row of other questions ('{name}'); choose another --out, or delete the file"
                )
        if files:
            ordered = [rows[item.id] for item in self.asked if item.id in rows]
            write_atomically(self.path, lambda temporary: _write(temporary, ordered))
        for file in parts:
            file.unlink()
        return set(rows)

    def append(self, rank: int, rows: Iterable[dict[str, str]]) -> None:
        """Add rows to a process's part."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.part(rank).open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def row_of(item: Question, **outcome: str) -> dict[str, str]:
    """A row of the output: the question with `answer` or `error`."""
    return asdict(item) | outcome


def _rows(file: Path) -> list[dict[str, Any]]:
    lines = file.read_bytes().split(b"\n")
    # Each row ends in a line's end: what stands behind the last one was being written when the process ended.
    whole = [(number, line) for number, line in enumerate(lines[:-1], 1) if line.strip()]
    rows = [_object(line.decode("utf-8", "replace"), f"{file}, line {number}") for number, line in whole]
    for (number, _), row in zip(whole, rows, strict=True):
        if "id" not in row:
            raise DataError(f"{file}, line {number}: no 'id'; this is no file of answers, choose another --out")
    return rows


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


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
    loaded = read_config(args)
    if args.batch_size < 1:
        raise ConfigError(f"--batch-size: {args.batch_size} should be at least 1")
    from minigpt4.api import DESCRIBE
    from minigpt4.common.distributed import start_processes
    from minigpt4.common.logging import set_up_logging

    prompt = args.prompt or loaded.config.evaluation.prompt or DESCRIBE
    asked = questions_of_files(args.images, prompt) if args.images else questions_of_jsonl(args.jsonl, prompt)
    processes = start_processes(loaded.config.run.device)
    set_up_logging(processes.rank)
    file = AnswerFile(args.out, asked)
    processes.run_on_main(lambda: _same_settings(file.path, loaded, args.ckpt))
    done = processes.run_on_main(file.gather)
    _answer_rest(file, done, loaded, args, processes)
    processes.gather(None)  # all parts are complete
    answered = processes.run_on_main(file.gather)
    processes.shutdown()
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
    from minigpt4.runners.checkpoints import seed_all

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

"""`python -m minigpt4.datasets.check CARD`: read every row, open every image, name the bad ones."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import yaml
from rich.console import Console
from tqdm import tqdm

from minigpt4.common.cli import exit_on_error
from minigpt4.common.config import load_config
from minigpt4.common.errors import ConfigError, DataError
from minigpt4.common.schema import Config, DatasetConfig, ModelConfig
from minigpt4.common.types import Record
from minigpt4.datasets.builders import SHARDS, dataset_prompts, images_folder, read_rows
from minigpt4.datasets.readers.rows import RowProblem
from minigpt4.datasets.shards.dataset import SPLIT, ShardRecords, ShardSample, index_shards
from minigpt4.processors.image import open_image


@dataclass(slots=True)
class Report:
    """What a check found.

    Attributes:
        unit: What a usable record is called ("well-formed rows").
        splits: Usable records by split.
        words: Answers by their number of words.
        example: The first usable record.
        problems: Rows, pictures and files that cannot be used.
        warnings: What is usable and still looks wrong.
    """

    unit: str = "well-formed rows"
    splits: Counter[str | None] = field(default_factory=Counter)
    words: Counter[int] = field(default_factory=Counter)
    example: Record | None = None
    problems: list[RowProblem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether there is something to use, and nothing bad."""
        return not self.problems and self.splits.total() > 0

    def add(self, record: Record) -> None:
        """Count a usable record."""
        self.splits[record.split] += 1
        self.see(record)

    def see(self, record: Record) -> None:
        """Take the texts of a record into account that was counted already."""
        self.words.update(len(answer.split()) for answer in record.answers)
        self.example = self.example or record


def show(console: Console, name: str, report: Report, limit: int | None) -> None:
    """Print a report: counts, lengths, an example, warnings and the first `limit` problems (None: all)."""
    splits = ", ".join(f"{split} {count:,}" for split, count in report.splits.items()) or "none"
    console.print(f"{name}: {report.splits.total():,} {report.unit} ({splits})")
    if report.example is not None:
        shortest, longest = min(report.words), max(report.words)
        middle = _median(report.words)
        console.print(
            f"  answers: {report.words.total():,}, {shortest} to {longest} words long, {middle:g} in the middle"
        )
        _show_example(console, report.example)
    for warning in report.warnings:
        console.print(f"  warning: {warning}")
    if not report.problems:
        console.print("  bad rows: none")
        return
    console.print(f"  bad rows: {len(report.problems):,}")
    for problem in report.problems[:limit]:
        console.print(f"    {problem}")
    hidden = len(report.problems[limit:]) if limit is not None else 0
    if hidden:
        console.print(f"    ... and {hidden:,} more; --all shows them")


def _median(counts: Counter[int]) -> float:
    total = counts.total()
    return (_nth(counts, (total - 1) // 2) + _nth(counts, total // 2)) / 2


def _nth(counts: Counter[int], place: int) -> int:
    """The number at `place` of the numbers counted, in their order."""
    ordered: Iterator[int] = iter(sorted(counts))
    number = next(ordered)
    while place >= counts[number]:
        place -= counts[number]
        number = next(ordered)
    return number


def _show_example(console: Console, record: Record) -> None:
    question = f" | question: {record.question}" if record.question else ""
    console.print(f"  example: {record.image}{question} | answers: {' / '.join(record.answers)}")


THREADS = 4
AT_ONCE = 1024
"""Samples handed to the threads at a time, so that memory stays bounded."""


def check_shards(name: str, cfg: DatasetConfig, with_samples: bool = True) -> Report:
    """Look through a dataset's shards, and read every caption and picture in them.

    Args:
        name: The dataset's key in the configuration.
        cfg: Its configuration.
        with_samples: Read the samples; otherwise only the shards' headers are looked at.

    Raises:
        ConfigError: The patterns are wrong or match nothing.
        DataError: The index cannot be written.
    """
    index = index_shards(name, cfg)
    report = Report(unit=f"samples in {len(index.entries):,} shards")
    report.problems += [RowProblem(str(path), problem) for path, problem in index.problems().items()]
    for path, entry in index.entries.items():
        if entry.samples and entry.without_caption:
            report.warnings.append(f"{path}: {entry.without_caption:,} pictures without a caption are left out")
        if entry.without_picture:
            report.warnings.append(f"{path}: {entry.without_picture:,} captions without a picture are left out")
    records = ShardRecords(index, [path for path, entry in index.entries.items() if entry.samples])
    report.splits[SPLIT] = len(records)
    if with_samples:
        for found in tqdm(_read_all(records), total=len(records), desc=f"{name}: samples", disable=None):
            if isinstance(found, RowProblem):
                report.problems.append(found)
                report.splits[SPLIT] -= 1
            else:
                report.see(found)
    return report


def _read_all(records: ShardRecords) -> Iterator[Record | RowProblem]:
    def read(number: int) -> ShardSample | RowProblem:
        try:
            return records.sample(number)
        except DataError as error:
            return RowProblem(f"sample {number:,}", str(error))

    numbers = iter(range(len(records)))
    # Read here, one after the other; decoded by threads, because Pillow does that without Python's lock.
    with ThreadPoolExecutor(THREADS) as pool:
        while batch := list(islice(numbers, AT_ONCE)):
            yield from pool.map(_decode, map(read, batch))


def _decode(sample: ShardSample | RowProblem) -> Record | RowProblem:
    if isinstance(sample, RowProblem):
        return sample
    try:
        sample.open()
    except DataError as error:
        return RowProblem(sample.record.source, str(error))
    return sample.record


THREADS = 4
SHOWN = 20
"""Bad rows named without --all."""


def check_dataset(name: str, cfg: DatasetConfig, model: ModelConfig, with_images: bool = True) -> Report:
    """Read every row of a dataset, and open every picture; of shards, every sample.

    Raises:
        ConfigError: A path is missing.
        DataError: The annotations as a whole cannot be read, or the prompts are wrong.
    """
    if cfg.builder == SHARDS:
        dataset_prompts(name, cfg, model)
        return check_shards(name, cfg, with_images)
    report = Report()
    records: list[Record] = []
    for row in tqdm(read_rows(name, cfg), desc=f"{name}: rows", unit=" rows", disable=None):
        if isinstance(row, RowProblem):
            report.problems.append(row)
        else:
            report.add(row)
            records.append(row)
    if any(record.question is None for record in records):
        dataset_prompts(name, cfg, model)
    if with_images:
        report.problems.extend(_broken_images(name, records, images_folder(name, cfg)))
    shared = _in_several_splits(records)
    if shared:
        report.warnings.append(f"{len(shared):,} pictures are in more than one split, such as {shared[0]}")
    return report


def _broken_images(name: str, records: Sequence[Record], folder: Path) -> Iterator[RowProblem]:
    first_rows = {record.image: record for record in reversed(records)}
    unique = [record for record in records if first_rows[record.image] is record]

    def problem(record: Record) -> RowProblem | None:
        try:
            open_image(folder / record.image)
        except DataError as error:
            return RowProblem(record.source, str(error))
        return None

    # Threads: Pillow decodes without Python's lock.
    with ThreadPoolExecutor(THREADS) as pool:
        progress = tqdm(pool.map(problem, unique), total=len(unique), desc=f"{name}: pictures", disable=None)
        yield from filter(None, progress)


def _in_several_splits(records: Sequence[Record]) -> list[str]:
    splits: dict[str, set[str | None]] = defaultdict(set)
    for record in records:
        splits[record.image].add(record.split)
    return [image for image, found in splits.items() if len(found) > 1]


def load_card(card: str, options: Sequence[str] = ()) -> Config:
    """The configuration of one dataset card, by a shipped card's name or a path.

    Raises:
        ConfigError: There is no such card, or it is wrong.
    """
    name = Path(card).stem.replace(".", "_")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "check.yaml"
        run.write_text(yaml.safe_dump({"datasets": {name: {"card": card}}}), encoding="utf-8")
        return load_config(run, options).config


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m minigpt4.datasets.check", description=__doc__)
    parser.add_argument("card", nargs="?", metavar="CARD", help="a shipped card's name, or the path of yours")
    parser.add_argument("--cfg-path", help="YAML file of a run: check all of its datasets")
    parser.add_argument("--options", nargs="+", default=[], action="extend", metavar="KEY=VALUE")
    parser.add_argument(
        "--no-images",
        action="store_true",
        help="rows only; of shards, only their index",
    )
    parser.add_argument("--all", action="store_true", help=f"name every bad row, not only the first {SHOWN}")
    arguments = parser.parse_args(argv)
    if (arguments.card is None) == (arguments.cfg_path is None):
        parser.error("give a CARD or --cfg-path")
    return arguments


def _datasets(cfg: Config) -> Mapping[str, DatasetConfig]:
    if not cfg.datasets:
        raise ConfigError("datasets: none is configured")
    return cfg.datasets


@exit_on_error()
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 1 if anything is bad."""
    arguments = _arguments(argv)
    if arguments.card is not None:
        cfg = load_card(arguments.card, arguments.options)
    else:
        cfg = load_config(arguments.cfg_path, arguments.options).config
    console = Console(highlight=False, markup=False, soft_wrap=True)
    bad = False
    for name, dataset in _datasets(cfg).items():
        report = check_dataset(name, dataset, cfg.model, with_images=not arguments.no_images)
        show(console, name, report, None if arguments.all else SHOWN)
        bad = bad or not report.good
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())

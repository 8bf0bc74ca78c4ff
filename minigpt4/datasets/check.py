"""Read every row and open every image of a dataset, and name the bad ones."""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate, islice
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from rich.console import Console

from minigpt4.common.cli import add_options_argument, exit_on_error
from minigpt4.common.config import load_config
from minigpt4.common.errors import ConfigError, DataError
from minigpt4.common.files import replace_lone_surrogates
from minigpt4.common.logging import set_up_logging, track
from minigpt4.common.schema import Config, DatasetConfig, ModelConfig
from minigpt4.common.types import Record
from minigpt4.conversation.template import PromptPool
from minigpt4.datasets.builders import SHARDS, dataset_prompts, images_folder, read_rows
from minigpt4.datasets.leaks import THREADS, Fingerprint, fingerprints, warnings_of_splits
from minigpt4.datasets.readers.rows import PackedRecords, RowProblem, repeated_ids
from minigpt4.processors.image import decode_pixels, jpeg_decoder

if TYPE_CHECKING:
    from minigpt4.datasets.shards.dataset import ShardRecords, ShardSample

MANY_IMAGES = 2000
"""Images from which on torch's quicker decoder is worth the seconds of importing it."""
SAMPLES_AT_A_TIME = 1024
"""Samples of shards handed to the threads together, so that memory stays bounded."""
SHOWN = 20
"""Bad rows named without --all."""


@dataclass(slots=True)
class Report:
    """What a check found.

    Attributes:
        unit: name of a usable record ("well-formed rows").
        splits: usable records by split.
        words: answers by their number of words.
        example: the first usable record.
        problems: rows, images and files that cannot be used.
        warnings: what is usable and still looks wrong.
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

    def add_texts(self, record: Record) -> None:
        """Count the answers of a usable record."""
        self.words.update(len(answer.split()) for answer in record.answers)
        self.example = self.example or record


def check_dataset(
    name: str, cfg: DatasetConfig, model: ModelConfig, with_images: bool = True, evaluated: Sequence[str] = ()
) -> Report:
    """Read every row of a dataset, and open every image; of shards, every sample.

    Args:
        name: key of the dataset in the configuration.
        cfg: its configuration.
        model: the model's configuration, for its prompts.
        with_images: open the images; otherwise only the rows are read, or the index of the shards.
        evaluated: splits that will be evaluated, whose image ids may not repeat.

    Raises:
        ConfigError: A path is missing, or patterns match nothing.
        DataError: The annotations cannot be read at all, the index of shards cannot be written, or the prompts are
            wrong.
    """
    if cfg.builder == SHARDS:
        dataset_prompts(name, cfg, model)
        return _check_shards(name, cfg, with_images)
    report = Report()

    def usable() -> Iterator[Record]:
        for row in track(read_rows(name, cfg), f"{name}: reading", "rows"):
            if isinstance(row, RowProblem):
                report.problems.append(row)
            else:
                report.splits[row.split] += 1
                report.add_texts(row)
                yield row

    records = PackedRecords(usable())
    unasked = next((record for record in records if record.question is None), None)
    if unasked is not None:
        PromptPool(dataset_prompts(name, cfg, model)).questions(unasked, lambda texts: texts[0])
    _check_splits(report, records, cfg.val_fraction, evaluated)
    _check_images(report, name, records, images_folder(name, cfg) if with_images else None)
    return report


def _check_images(report: Report, name: str, records: Sequence[Record], folder: Path | None) -> None:
    """Report images that cannot be opened, and those that several splits have; without a folder, by name only."""
    splits: dict[str, set[str | None]] = defaultdict(set)
    for record in records:
        for image in record.images:
            splits[image].add(record.split)
    prints: dict[str, Fingerprint] = {}
    if folder is not None:
        for image, found in _open_images(name, records, folder):
            if isinstance(found, RowProblem):
                report.problems.append(found)
            else:
                prints[image] = found
    report.warnings += warnings_of_splits(splits, prints)


def _check_splits(report: Report, records: Sequence[Record], val_fraction: float, evaluated: Sequence[str]) -> None:
    """Report a validation without a record, and records that an evaluation of their split would refuse."""
    if val_fraction and records and "val" not in report.splits:
        report.warnings.append(
            f"val_fraction {val_fraction:g} of {len(records):,} rows gives no split 'val': raise it, or name a "
            "split in each row"
        )
    for split in report.splits:
        problems = list(repeated_ids(record for record in records if record.split == split))
        if split in evaluated:
            report.problems += problems
        elif problems:
            report.warnings.append(
                f"{len(problems):,} of the rows of {split} repeat an image id, the first in {problems[0].source}: good "
                "for training, but an evaluation needs an 'id' in each row"
            )


def _open_images(name: str, records: Sequence[Record], folder: Path) -> Iterator[tuple[str, Fingerprint | RowProblem]]:
    """Each image, opened once, and its fingerprint or why it cannot be used."""
    first_rows: dict[str, Record] = {}
    for record in records:
        for image in record.images:
            first_rows.setdefault(image, record)
    if len(first_rows) >= MANY_IMAGES:
        jpeg_decoder()
    spellings: dict[Path, list[str]] = defaultdict(list)  # "a.jpg" and "./a.jpg" are one file
    for image in first_rows:
        spellings[folder / image].append(image)
    for path, found in track(fingerprints(spellings), f"{name}: opening", "images", len(spellings)):
        for image in spellings[path]:
            yield image, RowProblem(first_rows[image].source, str(found)) if isinstance(found, DataError) else found


def _check_shards(name: str, cfg: DatasetConfig, with_samples: bool) -> Report:
    """Index a dataset's shards, and read every caption and image in them."""
    from minigpt4.datasets.shards.dataset import SPLIT, ShardRecords, index_shards

    index = index_shards(name, cfg)
    report = Report(unit=f"samples in {len(index.entries):,} shards")
    report.problems += [RowProblem(str(path), problem) for path, problem in index.problems().items()]
    for path, entry in index.entries.items():
        if entry.samples and entry.without_caption:
            report.warnings.append(f"{path}: {entry.without_caption:,} images without a caption are left out")
        if entry.without_picture:
            report.warnings.append(f"{path}: {entry.without_picture:,} captions without an image are left out")
    records = ShardRecords(index)
    report.splits[SPLIT] = len(records)
    if with_samples:
        for found in track(_read_samples(records), f"{name}: reading", "samples", len(records)):
            if isinstance(found, RowProblem):
                report.problems.append(found)
                report.splits[SPLIT] -= 1
            else:
                report.add_texts(found)
    return report


def _read_samples(records: ShardRecords) -> Iterator[Record | RowProblem]:
    def read(number: int) -> ShardSample | RowProblem:
        try:
            return records.sample(number)
        except DataError as error:
            return RowProblem(f"sample {number:,}", str(error))

    def decode(sample: ShardSample | RowProblem) -> Record | RowProblem:
        if isinstance(sample, RowProblem):
            return sample
        try:
            decode_pixels(sample.image, sample.image_name)
        except DataError as error:
            return RowProblem(sample.record.source, str(error))
        return sample.record

    numbers = iter(range(len(records)))
    # Read by this thread, in order; only decoding is shared.
    with ThreadPoolExecutor(THREADS) as pool:
        while batch := list(islice(numbers, SAMPLES_AT_A_TIME)):
            yield from pool.map(decode, map(read, batch))


def show(console: Console, name: str, report: Report, limit: int | None) -> None:
    """Print a report: counts, lengths, an example, warnings and the first `limit` problems (None: all)."""

    def line(text: str) -> None:
        console.print(replace_lone_surrogates(text))  # names of files need not be UTF-8

    splits = ", ".join(f"{split} {count:,}" for split, count in report.splits.items()) or "none"
    line(f"{name}: {report.splits.total():,} {report.unit} ({splits})")
    if report.example is not None:
        words, example = report.words, report.example
        line(f"  answers: {words.total():,}, {min(words)} to {max(words)} words long, median {_median(words):g}")
        question = f" | question: {example.question}" if example.question else ""
        line(f"  example: {', '.join(example.images) or 'no image'}{question} | answers: {' / '.join(example.answers)}")
    for warning in report.warnings:
        line(f"  warning: {warning}")
    line(f"  bad rows: {len(report.problems):,}" if report.problems else "  bad rows: none")
    for problem in report.problems[:limit]:
        line(f"    {problem}")
    hidden = len(report.problems[limit:]) if limit is not None else 0
    if hidden:
        line(f"    ... and {hidden:,} more; --all shows them")


def _median(counts: Counter[int]) -> float:
    """The median of the numbers counted; a list of each of them could take gigabytes."""
    numbers = sorted(counts)
    ends = list(accumulate(counts[number] for number in numbers))
    low, high = (numbers[bisect_right(ends, place)] for place in ((ends[-1] - 1) // 2, ends[-1] // 2))
    return (low + high) / 2


def load_card(card: str, options: Sequence[str] = ()) -> Config:
    """The configuration of one dataset card.

    Args:
        card: a shipped card's name, or a path.
        options: `KEY=VALUE` each, as of `--options`.

    Raises:
        ConfigError: There is no such card, or it is wrong.
    """
    if os.path.exists(card) and not card.endswith((".yaml", ".yml")):
        raise ConfigError(
            f"{card}: a card is a YAML file; if these are annotations, write `annotations: {card}` and their `reader` "
            "into one, or name the run's YAML by --cfg-path"
        )
    name = re.sub(r"[.\[\]=\s]", "_", Path(card).stem)  # what a key of the configuration cannot have
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "check.yaml"
        run.write_text(yaml.safe_dump({"datasets": {name: {"card": card}}}), encoding="utf-8")
        try:
            return load_config(run, options).config
        except ConfigError as error:
            raise ConfigError(str(error).replace(f"{run}: ", "")) from error


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="minigpt4 check", description=__doc__)
    parser.add_argument("card", nargs="?", metavar="CARD", help="a shipped card's name, or the path of yours")
    parser.add_argument("--cfg-path", help="YAML file of a run: check all of its datasets")
    add_options_argument(parser)
    parser.add_argument("--no-images", action="store_true", help="rows only; of shards, only their index")
    parser.add_argument("--all", action="store_true", help=f"name every bad row, not only the first {SHOWN}")
    arguments = parser.parse_args(argv)
    if (arguments.card is None) == (arguments.cfg_path is None):
        parser.error("give a CARD or --cfg-path")
    return arguments


@exit_on_error()
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 1 if anything is bad."""
    arguments = _arguments(argv)
    set_up_logging()
    if arguments.card is not None:
        cfg = load_card(arguments.card, arguments.options)
    else:
        cfg = load_config(arguments.cfg_path, arguments.options).config
    if not cfg.datasets:
        raise ConfigError("datasets: none is configured")
    console = Console(highlight=False, markup=False, soft_wrap=True)
    good = True
    for name, dataset in cfg.datasets.items():
        splits = cfg.evaluation.splits if name in (cfg.evaluation.datasets or [name]) else []
        report = check_dataset(name, dataset, cfg.model, not arguments.no_images, splits)
        show(console, name, report, None if arguments.all else SHOWN)
        good = good and report.good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

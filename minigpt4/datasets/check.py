"""`python -m minigpt4.datasets.check CARD`: read every row, open every picture, name the bad ones."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml
from rich.console import Console
from tqdm import tqdm

from minigpt4.common.cli import exit_on_error
from minigpt4.common.config import load_config
from minigpt4.common.errors import ConfigError, DataError
from minigpt4.common.schema import Config, DatasetConfig, ModelConfig
from minigpt4.common.types import Record
from minigpt4.datasets.builders import SHARDS, dataset_prompts
from minigpt4.datasets.check_report import Report, show
from minigpt4.datasets.readers.rows import RowProblem
from minigpt4.datasets.records import images_folder, read_rows
from minigpt4.datasets.shards.check import check_shards
from minigpt4.processors.image import open_image

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

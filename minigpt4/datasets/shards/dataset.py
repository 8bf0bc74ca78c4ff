"""Shards -> encoded samples."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from minigpt4.common.errors import ConfigError, DataError
from minigpt4.common.schema import BadShards, DatasetConfig
from minigpt4.datasets.instruction import InstructionDataset
from minigpt4.datasets.orders import Order, ShardShuffle
from minigpt4.datasets.records import MissingSplitError
from minigpt4.datasets.shards.files import shard_paths
from minigpt4.datasets.shards.index import ShardIndex, open_index
from minigpt4.datasets.shards.records import ShardRecords
from minigpt4.processors.image import decode_picture

logger = logging.getLogger(__name__)
SPLIT = "train"
SHOWN = 20
"""Bad shards named in the log; `python -m minigpt4.datasets.check` names all."""


class ShardDataset(InstructionDataset):
    """Pictures and captions in tar shards; otherwise an instruction dataset like any other.

    A picture or a caption that cannot be read is replaced by another sample, as there.

    Args:
        records: The samples of the shards.
        window: Shards whose samples are shuffled among each other.
        common: As for `InstructionDataset`.
    """

    records: ShardRecords

    def __init__(self, name: str, records: ShardRecords, *, window: int, **common: Any) -> None:
        super().__init__(name, records, images=records.paths[0].parent, **common)
        self.window = window

    def order(self) -> Order:
        """Shards in any order, and samples in any order within groups of `window` shards."""
        return ShardShuffle(f"{self.seed}-{self.name}", self.records.counts, self.window)

    def identity(self) -> str:
        """What is trained on, by the names, sizes and sample counts of the shards: not a caption is read for it."""
        digest = hashlib.sha256(repr(list(self.prompts)).encode())
        for path in self.records.paths:
            entry = self.records.shard_index.entries[path]
            digest.update(repr((path.name, entry.size, entry.samples)).encode())
        return f"{len(self)} samples in {len(self.records.paths)} shards, {digest.hexdigest()[:16]}"

    def open(self, index: int) -> Tensor:
        """The picture of a sample, (3, S, S), as an instruction dataset's.

        Raises:
            DataError: Picture or caption cannot be used; the message names shard and sample.
        """
        sample = self.records.sample(index)
        return decode_picture(sample.picture, sample.name, self.image_processor)

    def _remedy(self, reason: str) -> str:
        return f"the shards look wrong ({reason}); python -m minigpt4.datasets.check names every bad sample"


def index_shards(name: str, cfg: DatasetConfig) -> ShardIndex:
    """The index of a dataset's shards, made first where it is not there yet.

    Raises:
        ConfigError: The patterns are wrong or match nothing.
        DataError: The index cannot be written.
    """
    return open_index(shard_paths(name, cfg.shards), Path(cfg.shard_index) if cfg.shard_index else None)


def prepare_shards(name: str, cfg: DatasetConfig) -> ShardIndex:
    """The index of a dataset's shards, fit for training; what is wrong with some of them is logged.

    Raises:
        ConfigError: As for `index_shards`; or a key does not go with shards.
        DataError: As for `index_shards`; or there is no sample, or a shard cannot be used and `bad_shards` is stop.
    """
    if cfg.feature_cache:
        raise ConfigError(f"datasets.{name}.feature_cache: there is none for shards; delete the line")
    if cfg.shuffle_shards < 1:
        raise ConfigError(f"datasets.{name}.shuffle_shards: {cfg.shuffle_shards} should be at least 1")
    index = index_shards(name, cfg)
    problems = index.problems()
    some_usable = any(entry.samples for entry in index.entries.values())
    if problems and (cfg.bad_shards is BadShards.stop or not some_usable):
        raise DataError(_refusal(name, problems, some_usable))
    for path, problem in list(problems.items())[:SHOWN]:
        logger.warning("dataset %s: shard %s: %s", name, path, problem)
    if len(problems) > SHOWN:
        logger.warning("dataset %s: %d more shards cannot be used to the end", name, len(problems) - SHOWN)
    left_out = sum(entry.without_caption for entry in index.entries.values())
    if left_out:
        logger.warning("dataset %s: %d pictures have no caption and are left out", name, left_out)
    return index


def load_shards(
    name: str, cfg: DatasetConfig, splits: Sequence[str], prepared: ShardIndex | None = None
) -> ShardRecords:
    """The samples of a dataset's shards.

    Args:
        name: The dataset's key in the configuration.
        cfg: Its configuration.
        splits: Splits to take; there is only `train`.
        prepared: What `prepare_shards` gave the main process. Where it holds on this machine too, no shard is looked
            at again: a thousand processes with ten thousand shards would be ten million questions to a file server.

    Raises:
        ConfigError: As for `prepare_shards`.
        MissingSplitError: Another split than `train` is asked for.
        DataError: As for `prepare_shards`.
    """
    for split in splits:
        if split != SPLIT:
            raise MissingSplitError(
                f"datasets.{name}: there is no split '{split}': shards are trained on (run.valid_splits: [] where "
                "there is nothing else); evaluate on a dataset with annotations"
            )
    index = prepared if prepared is not None and prepared.is_here() else prepare_shards(name, cfg)
    return ShardRecords(index, [path for path, entry in index.entries.items() if entry.samples])


def _refusal(name: str, problems: dict[Path, str], some_usable: bool) -> str:
    first, why = next(iter(problems.items()))
    others = f" (and {len(problems) - 1:,} more shards)" if len(problems) > 1 else ""
    remedy = (
        f"python -m minigpt4.datasets.check names them all; datasets.{name}.bad_shards=skip trains without them"
        if some_usable
        else f"set the pattern by --options datasets.{name}.shards=PATTERN, or the environment variable MINIGPT4_DATA"
    )
    return f"datasets.{name}.shards: {first}: {why}{others}; {remedy}"

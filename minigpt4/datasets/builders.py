"""Configuration -> datasets."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from minigpt4.common.errors import ConfigError, DataError, MissingSplitError, counted
from minigpt4.common.files import require_path
from minigpt4.common.registry import builders, processors, readers
from minigpt4.common.schema import BadData, DatasetConfig, ModelConfig, ProcessorConfig
from minigpt4.common.types import IMAGE_TOKEN, Record
from minigpt4.conversation.template import QUESTION, PromptPool, place_images, read_prompts
from minigpt4.datasets.readers.rows import PackedRecords, Reader, RowProblem

if TYPE_CHECKING:
    from minigpt4.conversation.template import PromptEncoder
    from minigpt4.datasets.instruction import InstructionDataset
    from minigpt4.datasets.shards.dataset import ShardDataset
    from minigpt4.datasets.shards.index import ShardIndex

logger = logging.getLogger(__name__)
SHARDS = "webdataset"
"""Builder of datasets whose images and captions are in tar shards."""
MAX_TOKENS = 4
"""Tokens of a character at most: a tokenizer that does not know it writes its bytes."""
SHOWN = 20
"""Bad rows named in the log; `minigpt4 check` names all."""
QUICKLY_READ = 50_000_000
"""Bytes of annotations that are read in a second."""


def prepare_datasets(datasets: Mapping[str, DatasetConfig]) -> dict[str, ShardIndex]:
    """Index and check the shards of every dataset that has some, once for all processes.

    Args:
        datasets: configuration of each dataset by name.

    Returns:
        The indexes by dataset, for `build_datasets` in every process.

    Raises:
        ConfigError: The patterns are wrong or match nothing, or a key does not apply to shards.
        DataError: The index cannot be written, or shards cannot be used.
    """
    from minigpt4.datasets.shards.dataset import prepare_shards

    return {name: prepare_shards(name, dataset) for name, dataset in datasets.items() if dataset.builder == SHARDS}


def build_datasets(
    datasets: Mapping[str, DatasetConfig],
    model: ModelConfig,
    encoder: PromptEncoder,
    splits: Sequence[str],
    *,
    seed: int,
    train: bool,
    prepared: Mapping[str, ShardIndex] = MappingProxyType({}),
) -> dict[str, InstructionDataset]:
    """Every dataset of the configuration, by name.

    Args:
        datasets: configuration of each dataset by name.
        model: the model's configuration: image size, and prompts where a dataset sets none.
        encoder: encodes prompts and answers for the model.
        splits: splits to take; none: no dataset.
        seed: part of the name of every random generator.
        train: use the processors for training, not those for evaluation.
        prepared: what `prepare_datasets` returned; shards missing there are prepared here.

    Raises:
        ConfigError: No dataset is configured, a path is missing, or a split does not exist (in validation: in none
            of the datasets).
        DataError: A row of the annotations cannot be used.
    """
    if not datasets:
        raise ConfigError("datasets: none is configured; add one, for example 'datasets: {flickr30k: {}}'")
    if not splits:
        return {}
    built: dict[str, InstructionDataset] = {}
    missing: list[MissingSplitError] = []
    for name, dataset in datasets.items():
        # Only builders of datasets with shards take this argument.
        index = {"prepared": prepared[name]} if name in prepared else {}
        try:
            built[name] = build_dataset(name, dataset, model, encoder, splits, seed=seed, train=train, **index)
        except MissingSplitError as error:
            missing.append(error)
    if missing and (train or not built):
        raise missing[0]
    for absent in missing:
        logger.warning("left out of validation: %s", absent)
    return built


def build_dataset(
    name: str,
    cfg: DatasetConfig,
    model: ModelConfig,
    encoder: PromptEncoder,
    splits: Sequence[str],
    *,
    seed: int,
    train: bool,
    **prepared: Any,
) -> InstructionDataset:
    """One dataset, made by the builder that its card names; arguments and errors as for `build_datasets`."""
    build = builders.get(cfg.builder)
    dataset: InstructionDataset = build(name, cfg, model, encoder, splits, seed=seed, train=train, **prepared)
    return dataset


@builders.register("instruction")
def build_instruction(
    name: str,
    cfg: DatasetConfig,
    model: ModelConfig,
    encoder: PromptEncoder,
    splits: Sequence[str],
    *,
    seed: int,
    train: bool,
) -> InstructionDataset:
    """Images with an instruction and an answer; arguments and errors as for `build_datasets`."""
    from minigpt4.datasets.instruction import InstructionDataset

    options = _sample_options(name, cfg, model, train)
    check = partial(check_askable, PromptPool(options["prompts"]), encoder)
    records = select_splits(name, load_records(name, cfg, check), splits)
    return InstructionDataset(name, records, images=images_folder(name, cfg), encoder=encoder, seed=seed, **options)


@builders.register(SHARDS)
def build_shards(
    name: str,
    cfg: DatasetConfig,
    model: ModelConfig,
    encoder: PromptEncoder,
    splits: Sequence[str],
    *,
    seed: int,
    train: bool,
    prepared: ShardIndex | None = None,
) -> ShardDataset:
    """Images and captions in tar shards; arguments and errors as for `build_datasets`."""
    from minigpt4.datasets.shards.dataset import ShardDataset, load_shards

    options = _sample_options(name, cfg, model, train)
    if not PromptPool(options["prompts"]).instructions:
        raise ConfigError(f"datasets.{name}.prompts: shards have no questions; add a prompt without '{QUESTION}'")
    records = load_shards(name, cfg, splits, prepared)
    return ShardDataset(name, records, window=cfg.shuffle_shards, encoder=encoder, seed=seed, **options)


def _sample_options(name: str, cfg: DatasetConfig, model: ModelConfig, train: bool) -> dict[str, Any]:
    """The arguments that `InstructionDataset` and `ShardDataset` share."""
    phase = "train" if train else "eval"
    image: ProcessorConfig = getattr(cfg.vis_processor, phase)
    text: ProcessorConfig = getattr(cfg.text_processor, phase)
    key = f"datasets.{name}.vis_processor.{phase}"
    if image.image_size not in (None, model.image_size):
        raise ConfigError(
            f"{key}.image_size: {image.image_size}, but the model takes images of {model.image_size} pixels; leave the "
            "line out, or change model.image_size"
        )
    return {
        "image_processor": _build_processor(key, image.name, image_size=model.image_size),
        "text_processor": _build_processor(
            f"datasets.{name}.text_processor.{phase}", text.name, prompt=text.prompt, max_words=text.max_words
        ),
        "prompts": dataset_prompts(name, cfg, model),
        "target": cfg.target,
        "answer": cfg.answer,
        "sample_ratio": cfg.sample_ratio,
    }


def _build_processor(key: str, processor: str, **arguments: Any) -> Any:
    try:
        return processors.get(processor)(**arguments)
    except TypeError as error:
        raise ConfigError(f"{key}.name: '{processor}' is a processor of another kind ({error})") from error


def dataset_prompts(name: str, cfg: DatasetConfig, model: ModelConfig) -> Sequence[str]:
    """The instructions of a dataset: those of its own file, or else of the model's.

    Raises:
        ConfigError: No file is set, or it is missing or empty.
        DataError: A line has no image placeholder, or several.
    """
    if cfg.prompts:
        return read_prompts(cfg.prompts, f"datasets.{name}.prompts")
    if model.prompt_path:
        return read_prompts(model.prompt_path, "model.prompt_path")
    raise ConfigError(f"datasets.{name}.prompts is not set and neither is model.prompt_path; name a file of prompts")


def check_askable(prompts: PromptPool, encoder: PromptEncoder, record: Record) -> None:
    """Refuse a record that cannot become a sample at the start, not hours later when its turn comes.

    Args:
        prompts: prompts of its dataset.
        encoder: encodes prompts and answers.
        record: an annotated image.

    Raises:
        DataError: It has no question and the dataset no prompt for that, or too many tokens.
    """
    first, *later = prompts.questions(record, partial(max, key=len))
    # Hardly any record has to be encoded to know that it fits.
    room = encoder.max_context_len - len(record.images) * encoder.num_image_tokens
    if MAX_TOKENS * len(encoder.template.render(first)) > room or any(IMAGE_TOKEN in question for question in later):
        *asked, last = place_images([first, *later], len(record.images), record.source)
        answers = [answer for _, answer in record.earlier]
        earlier = list(zip(asked, answers, strict=True))
        encoder.encode_example(last, record.answers[0], len(record.images), record.source, earlier)


def load_records(name: str, cfg: DatasetConfig, check: Callable[[Record], None] | None = None) -> PackedRecords:
    """All usable rows of dataset `name`; those that are not, are counted and the first ones logged (`bad_rows: skip`).

    Args:
        name: key of the dataset in the configuration.
        cfg: its configuration.
        check: raises a DataError for a record that cannot be used; None: all can.

    Raises:
        ConfigError: As for `read_rows`.
        DataError: As for `read_rows`; or a row cannot be used, or there is none.
    """
    problems: list[RowProblem] = []
    count, malformed = 0, False

    def usable() -> Iterator[Record]:
        nonlocal count, malformed
        for row in read_rows(name, cfg):
            found = _checked(row, check) if isinstance(row, Record) and check is not None else row
            if isinstance(found, Record):
                yield found
            else:
                count += 1
                malformed |= not isinstance(row, Record)
                problems.extend([found] * (len(problems) < SHOWN))

    records = PackedRecords(usable())
    if problems and cfg.bad_rows is BadData.stop:
        others = f" (and {counted(count - 1, 'more rows')})" if count > 1 else ""
        check_names = "`minigpt4 check` names every bad row, and " if malformed else ""
        raise DataError(f"{problems[0]}{others}; {check_names}datasets.{name}.bad_rows=skip leaves them out")
    if not records:
        why = f"; the first row: {problems[0]}" if problems else ""
        raise DataError(f"datasets.{name}.annotations: {annotations_paths(name, cfg)[0]} holds no record{why}")
    for problem in problems:
        logger.warning("dataset %s: left out: %s", name, problem)
    if count > SHOWN:
        logger.warning("dataset %s: %d more rows cannot be used and are left out", name, count - SHOWN)
    return records


def _checked(record: Record, check: Callable[[Record], None]) -> Record | RowProblem:
    try:
        check(record)
    except DataError as error:
        return RowProblem(record.source, str(error).removeprefix(f"{record.source}: "))
    return record


def select_splits(name: str, records: PackedRecords, splits: Sequence[str]) -> PackedRecords:
    """The records of the given splits, in the order of the annotations.

    Raises:
        MissingSplitError: One of them has no record; the message lists those that have.
    """
    for error in _missing_splits(name, records.splits(), splits).values():
        raise error
    return records.of_splits(splits)


def _missing_splits(name: str, counts: Mapping[str | None, int], splits: Sequence[str]) -> dict[str, MissingSplitError]:
    """The splits of which there is no record, each with an error that lists those that have some."""
    known = ", ".join(f"{known} ({count:,})" for known, count in counts.items())
    missing = {}
    for split in splits:
        if not counts.get(split):
            hint = f", or set or raise datasets.{name}.val_fraction" if split == "val" else ""
            missing[split] = MissingSplitError(
                f"datasets.{name}: there is no split '{split}'; the annotations have {known}: name one of these in "
                f"run.train_splits, run.valid_splits or evaluation.split (--split){hint}"
            )
    return missing


def quick_missing_splits(name: str, cfg: DatasetConfig, splits: Sequence[str]) -> dict[str, MissingSplitError]:
    """The splits that dataset `name` lacks, found before torch is imported; none where that would take long.

    Rows are read until every split was seen. Shards, folders, files beyond `QUICKLY_READ` and those with unusable rows
    are left to `build_dataset`.

    Raises:
        MiniGPT4Error: As for `read_rows`.
    """
    if cfg.builder == SHARDS:
        return {}
    if any(path.is_dir() or path.stat().st_size > QUICKLY_READ for path in annotations_paths(name, cfg)):
        return {}
    counts: Counter[str | None] = Counter()
    for row in read_rows(name, cfg):
        if isinstance(row, RowProblem):
            return {}
        counts[row.split] += 1
        if all(counts[split] for split in splits):
            break
    return _missing_splits(name, counts, splits) if counts else {}


def require_training_splits(datasets: Mapping[str, DatasetConfig], train: Sequence[str], valid: Sequence[str]) -> None:
    """Refuse early what `build_datasets` would refuse: splits that the datasets do not have.

    Args:
        datasets: configuration of each dataset by name.
        train: splits to train on, all of which each dataset needs.
        valid: splits of the validation, all of which one dataset needs.

    Raises:
        MissingSplitError: The message lists the splits that there are.
    """
    without_valid: list[MissingSplitError] = []
    for name, cfg in datasets.items():
        missing = quick_missing_splits(name, cfg, [*train, *valid])
        for split in train:
            if split in missing:
                raise missing[split]
        without_valid += list(missing.values())[:1]
    if without_valid and len(without_valid) == len(datasets):
        raise without_valid[0]


def evaluated_datasets(chosen: Sequence[str], names: Sequence[str]) -> Sequence[str]:
    """The datasets to evaluate.

    Args:
        chosen: those that evaluation.dataset names.
        names: the configured datasets.

    Raises:
        ConfigError: evaluation.dataset names one that is not configured, or is not set although there are several.
    """
    known = ", ".join(names) or "none"
    if not chosen and len(names) != 1:
        raise ConfigError(f"evaluation.dataset is not set; name some of the configured datasets ({known})")
    for name in chosen:
        if name not in names:
            raise ConfigError(f"evaluation.dataset: {name!r} is not one of the configured datasets ({known})")
    return chosen or names


def require_evaluated_splits(datasets: Mapping[str, Mapping[str, MissingSplitError]], splits: Sequence[str]) -> None:
    """Refuse datasets without any of the evaluated splits, and splits that none of them has.

    RefCOCO has testA and testB, RefCOCOg test: of several datasets, each is evaluated on the splits that it has.

    Args:
        datasets: the missing splits of each dataset by name.
        splits: the splits to evaluate.

    Raises:
        MissingSplitError: The message lists the splits that there are.
    """
    for missing in datasets.values():
        for split, error in missing.items():
            if len(missing) == len(set(splits)) or all(split in other for other in datasets.values()):
                raise error


def read_rows(name: str, cfg: DatasetConfig) -> Iterator[Record | RowProblem]:
    """Every row of dataset `name`, usable or not; rows without a split are given one (`split`, `val_fraction`).

    Raises:
        ConfigError: The annotations do not exist, or the reader is unknown.
        DataError: The annotations cannot be read at all.
    """
    for path in annotations_paths(name, cfg):
        for row in _reader(cfg)().read(path):
            if not isinstance(row, Record):
                yield row
                continue
            if row.split is None:
                row = replace(row, split=cfg.split or _split_of(row.image or row.image_id, cfg.val_fraction))
            if cfg.image_name != "{image}":
                row = replace(row, images=tuple(cfg.image_name.replace("{image}", image) for image in row.images))
            yield row


def annotations_paths(name: str, cfg: DatasetConfig) -> list[Path]:
    """The annotation files (or folders) of dataset `name`, of which there is at least one.

    Raises:
        ConfigError: One does not exist.
    """
    folder = _reader(cfg).folder
    paths = cfg.annotation_paths() or [(cfg.images or "") if folder else ""]
    return [require_path(path, f"datasets.{name}.annotations", folder=folder) for path in paths]


def images_folder(name: str, cfg: DatasetConfig) -> Path:
    """The folder that relative image paths start at: `images`, or that of the annotations.

    Raises:
        ConfigError: It does not exist.
    """
    if cfg.images:
        return require_path(cfg.images, f"datasets.{name}.images", folder=True)
    annotations = annotations_paths(name, cfg)[0]
    return annotations if annotations.is_dir() else annotations.parent


def _reader(cfg: DatasetConfig) -> type[Reader]:
    reader: type[Reader] = readers.get(cfg.reader or "")
    return reader


def _split_of(image: str, val_fraction: float) -> str:
    """`val` for a fixed share of image names, so that an image keeps its split when rows are added."""
    encoded = image.encode(errors="surrogatepass")  # a file's name need not be UTF-8
    share = int.from_bytes(hashlib.sha256(encoded).digest()[:8], "big") / 2**64
    return "val" if share < val_fraction else "train"

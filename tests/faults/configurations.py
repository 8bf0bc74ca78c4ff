"""Configurations drawn from the schema: each is refused in one line, or its dry run, or its run, ends well."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import shutil
import traceback
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import hypothesis
import torch
import yaml
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from minigpt4.common.checkpoint import read_projection
from minigpt4.common.config import load_config
from minigpt4.common.errors import MiniGPT4Error
from minigpt4.common.schema import DatasetConfig, EvaluationConfig, ModelConfig, Range, RunConfig
from minigpt4.runners.train import train
from tests.faults.commands import CONFIG, write_data
from tests.faults.files import time_limit
from tests.faults.outcomes import Outcome, Tally
from tests.runners.project import logging_restored

SETTINGS = {"model": ModelConfig, "datasets.scenes": DatasetConfig, "run": RunConfig, "evaluation": EvaluationConfig}
"""Sections whose fields are drawn."""
LEFT_OUT = {
    "model.compile",  # minutes of compilation
    "run.trackers",  # services
    "run.run_dir",
    "run.output_dir",
    "run.resume_ckpt_path",
    "run.device",  # the machine's, and not that of others
}
NAMES = {
    "run.lr_sched": ["linear_warmup_cosine_lr", "linear_warmup_step_lr", "constant_lr", "nothing"],
    "model.template": [None, "vicuna0", "llama2", "minigpt_v2", "chat", "nothing"],
    "model.prompt_template": ["{}", "Q: {} A: ", "###Human: {} ###Assistant: ", "no place", "{}{}"],
    "model.vit_model": ["eva_giant_patch14_224", "vit_tiny_patch16_224", "nothing"],
    "model.image_size": [64, 32, 72, 63, 1, 0],
    "model.num_query_token": [16, 1, 8, 4096],
    "datasets.scenes.reader": ["flickr30k", "jsonl", "csv", "folder", None, "nothing"],
    "datasets.scenes.builder": ["instruction", "webdataset", "nothing"],
    "datasets.scenes.answer": ["{answer}", "It shows {answer}", "nothing"],
    "run.train_splits": [["train"], ["train", "val"], ["val"], [], ["nothing"]],
    "run.valid_splits": [["val"], ["test", "val"], ["train"], [], ["nothing"]],
    "run.task": ["image_text_pretrain", "nothing"],
    "run.runner": ["epochs", "nothing"],
}
"""Settings whose values have a meaning, which no type tells."""
TEXTS = ["", "a", "a b", "ä\u2028", "${nothing}", "null", "0", "a/b", "\U0001f600" * 50]
EDGES = [0, 1, -1, 2, 3, 7, 64, 1000, 10**6, 2**31, 2**53, 2**63 - 1, 2**63]
FLOAT_EDGES = [0.0, 1.0, -1.0, 1e-300, 1e-6, 0.5, 3.0, 1e6, 1e300, math.inf, math.nan]


def overrides() -> SearchStrategy[dict[str, Any]]:
    """A few settings with values that their types allow, most of them in range; keys are dotted."""
    listed = (field for section, kind in SETTINGS.items() for field in _fields(section, kind))
    fields = {key: _values(key, expected, known) for key, expected, known in listed if key not in LEFT_OUT}
    drawn = {key: values for key, values in fields.items() if values is not None}
    pairs = st.sampled_from(sorted(drawn)).flatmap(lambda key: st.tuples(st.just(key), drawn[key]))
    return st.lists(pairs, min_size=1, max_size=5, unique_by=lambda pair: pair[0]).map(dict)


def _fields(section: str, kind: Any) -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    """(dotted key, type, field) of the settings of a section and of those within it."""
    types = get_type_hints(kind)
    for known in dataclasses.fields(kind):
        key = f"{section}.{known.name}"
        if dataclasses.is_dataclass(types[known.name]):
            yield from _fields(key, types[known.name])
        else:
            yield key, types[known.name], known


def _values(key: str, expected: Any, known: dataclasses.Field[Any]) -> SearchStrategy[Any] | None:
    """Values of a setting; None: it is drawn nowhere."""
    if key in NAMES:
        return st.sampled_from(NAMES[key])
    kinds = [kind for kind in get_args(expected) if kind is not type(None)] if _is_optional(expected) else [expected]
    kind = kinds[0]
    if kind is bool:
        values: SearchStrategy[Any] = st.booleans()
    elif kind is int or kind is float:
        values = _numbers(kind, known.metadata.get("range", Range()))
    elif kind is str:
        values = st.sampled_from(TEXTS)
    elif isinstance(kind, type) and issubclass(kind, Enum):
        values = st.sampled_from([entry.value for entry in kind])
    else:
        return None
    return st.one_of(st.none(), values) if _is_optional(expected) else values


def _is_optional(expected: Any) -> bool:
    return type(None) in get_args(expected)


def _numbers(kind: type, allowed: Range) -> SearchStrategy[Any]:
    """Numbers near the bounds and the extremes; three of four are in range."""
    bounds = [bound for bound in (allowed.at_least, allowed.above, allowed.at_most, allowed.below) if bound is not None]
    near = [bound + step for bound in bounds for step in (-1, 0, 1)] + [bound * 1.001 for bound in bounds]
    listed = [kind(number) for number in near] + (EDGES if kind is int else FLOAT_EDGES)
    usual = st.integers(1, 8) if kind is int else st.floats(1e-6, 1)
    inside = [number for number in listed if allowed.holds(number)]
    return st.one_of(usual, usual, st.sampled_from(inside), st.sampled_from(listed))


def _is_short(settings: Mapping[str, Any]) -> bool:
    """Whether a run takes seconds: everything that multiplies its work is small."""
    factors = ["batch_size", "global_batch", "accum_grad_iters", "max_epoch", "iters_per_epoch", "eval_batch_size"]
    factors.append("group_by_length")
    factors.append("num_workers")  # each is a process
    return all(settings.get(f"run.{name}") in (None, *range(-1, 9)) for name in factors)


class Trials:
    """A folder in which configurations are tried.

    Args:
        folder: empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_data(folder / "data")
        self.place = folder / "runs" / "0"
        self.place.mkdir(parents=True)
        small = {"max_epoch": 1, "iters_per_epoch": 1, "save_freq": None, "resume_ckpt_path": None}
        content = CONFIG | {"run": CONFIG["run"] | small}  # type: ignore[operator]
        (self.place / "config.yaml").write_text(yaml.safe_dump(content))

    def outcome(self, settings: Mapping[str, Any], dry_run: bool) -> tuple[Outcome, str]:
        """What becomes of a run with these settings.

        Args:
            settings: values by dotted key.
            dry_run: stop before the first step.
        """
        shutil.rmtree(self.place / "out", ignore_errors=True)
        story = f"{dict(settings)}{' (dry run)' if dry_run else ''}"
        try:
            with _inside(self.place), time_limit():
                options = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
                train(load_config("config.yaml", options), dry_run=dry_run)
        except MiniGPT4Error as error:
            if not str(error) or "\n" in str(error):
                return Outcome.wrong, f"{story}: not one line: {error}"
            return Outcome.survived, ""
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return Outcome.wrong, f"{story}: {traceback.format_exc(limit=-5)}"
        checkpoints = [] if dry_run else sorted(self.place.glob("out/train/checkpoint_*.pth"))
        if not dry_run and not checkpoints:
            return Outcome.lost, f"{story}: no checkpoint"
        for path in checkpoints:
            weights, _ = read_projection(path)
            if not all(torch.isfinite(value).all() for value in weights.values()):
                return Outcome.wrong, f"{story}: {path.name} holds NaN or infinity"
        return Outcome.survived, ""


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """The working folder is `folder`, nothing is shown, and one thread computes."""
    before, threads = Path.cwd(), torch.get_num_threads()
    os.chdir(folder)
    torch.set_num_threads(1)
    try:
        with logging_restored(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)


def try_configurations(folder: Path, count: int, seed: int) -> Iterator[Tally]:
    """Try `count` configurations drawn from the schema: a quarter of them is run, of the others the dry run."""
    trials = Trials(folder)
    ran, dry = Tally("configurations, run"), Tally("configurations, dry run")

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(overrides(), st.sampled_from([True, True, True, False]))
    def attempt(settings: dict[str, Any], dry_run: bool) -> None:
        dry_run = dry_run or not _is_short(settings)
        (dry if dry_run else ran).add(*trials.outcome(settings, dry_run))

    attempt()
    yield ran
    yield dry

"""A complete tiny project for training tests: images, annotations and a configuration on the parity weights."""

from __future__ import annotations

import json
import logging
import os
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from minigpt4.common.checkpoint import read_checkpoint
from minigpt4.common.files import read_appended
from tests.launch import Running, launch, start
from tests.models.parity import model_config

REPOSITORY = Path(__file__).parents[2]
PARITY_A = REPOSITORY / "tests" / "fixtures" / "parity_a"
TIMED = {"seconds", "samples_per_second", "tokens_per_second", "padded_tokens_per_second", "mfu", "max_memory_mib"}
"""Values of log.txt that depend on the machine."""
WORDS = "a red green blue dog man tree house stands near the old wide river bridge and two"
LOG_LINE = re.compile(
    r"epoch (?P<epoch>\d+) \(\d+/\d+\)  step +(?P<step>\d+)/(?P<steps>\d+)  loss (?P<loss>\d+\.\d{4}|nan)  "
    r"lr (?P<lr>\d\.\d\de-?\d+)  (?P<speed>[\d.e+]+) samples/s  eta (?P<eta>\?|\d+:\d\d:\d\d)"
)


def model_card(**changes: Any) -> dict[str, Any]:
    """The fixture's model, as plain values for YAML."""
    values = asdict(model_config(PARITY_A, prompt_path="prompts.txt"))
    for name in ("precision", "low_resource", "model_type", "arch", "vit_class_token", "projector"):
        values.pop(name)
    return values | changes


@contextmanager
def logging_restored() -> Iterator[None]:
    """Undo what a run does to logging, so that later tests do not log to its streams and files."""
    root, package = logging.getLogger(), logging.getLogger("minigpt4")
    handlers, level, package_level = root.handlers[:], root.level, package.level
    try:
        yield
    finally:
        for handler in root.handlers:
            if handler not in handlers:
                handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        package.setLevel(package_level)
        logging.captureWarnings(False)


@dataclass(frozen=True)
class Project:
    """A folder with images, annotations and a configuration; the tests' runs override some of its values."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, train: int = 24, val: int = 7) -> Project:
        """Draw the images and write everything."""
        draw = random.Random(0)
        rows = []
        for number in range(train + val):
            name = f"image_{number}.png"
            colour = tuple(draw.randrange(256) for _ in range(3))
            image = Image.new("RGB", (32, 24), colour)
            image.paste((255, 255, 255), (number % 20, 5, number % 20 + 8, 12))
            image.save(folder / name)
            answer = " ".join(draw.choices(WORDS.split(), k=draw.randint(3, 14)))
            rows.append({"image": name, "answer": answer, "split": "train" if number < train else "val"})
        (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "prompts.txt").write_text("<Img><ImageHere></Img> Describe it.\n<Img><ImageHere></Img> What is it?\n")
        (folder / "card.yaml").write_text(yaml.safe_dump(model_card()))
        config = {
            "model": {"model_type": "card.yaml"},
            "datasets": {"shapes": {"reader": "jsonl", "annotations": "data.jsonl"}},
            "run": {
                "batch_size": 4,
                "eval_batch_size": 3,
                "device": "cpu",
                "output_dir": "output",
                "job_name": "test",
                "num_workers": 0,
                "max_epoch": 2,
                "warmup_steps": 3,
                "init_lr": 1e-3,
                "min_lr": 1e-4,
                "log_freq": 1,
            },
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        return cls(folder)

    def start(self, *options: str, **launched: Any) -> Running:
        """Start the training command in the project's folder; further arguments are those of `tests.launch.start`."""
        return start(*self._command(options), cwd=self.folder, **launched)

    def train(self, *options: str, processes: int = 1) -> tuple[int, str]:
        """Run the training command to its end, with `processes` as the ranks of a run: (exit status, output)."""
        done = launch(*self._command(options), ranks=processes, cwd=self.folder)
        return done.returncode, done.stdout + done.stderr

    @staticmethod
    def _command(options: Sequence[str]) -> list[str]:
        script = [str(REPOSITORY / "train.py"), "--cfg-path", "config.yaml"]
        return [*script, *(["--options", *options] if options else [])]

    def train_here(self, *options: str, dry_run: bool = False) -> Path:
        """Train in this process, which starts faster; returns `run.run_dir`.

        One thread, as in the other processes, so that sums are rounded in the same order.
        """
        from minigpt4.common.config import load_config
        from minigpt4.runners.train import train

        before, threads = Path.cwd(), torch.get_num_threads()
        os.chdir(self.folder)
        torch.set_num_threads(1)
        try:
            loaded = load_config("config.yaml", list(options))
            with logging_restored():
                train(loaded, dry_run=dry_run)
        finally:
            os.chdir(before)
            torch.set_num_threads(threads)
        return self.folder / (loaded.config.run.run_dir or "")

    def checkpoint(self, run: str, name: str) -> dict[str, Any]:
        """A checkpoint of the run folder `run`."""
        return read_checkpoint(self.folder / run / name)


def logs_step(step: int) -> Callable[[str], bool]:
    """Whether a line is the log line of a step of an epoch."""

    def found(line: str) -> bool:
        match = LOG_LINE.search(line)
        return match is not None and int(match["step"]) == step

    return found


def printed_losses(output: str) -> dict[int, str]:
    """Losses in log lines, by global step."""
    found = {}
    for match in LOG_LINE.finditer(output):
        found[int(match["epoch"]) * int(match["steps"]) + int(match["step"]) - 1] = match["loss"]
    return found


def read_epochs(folder: Path) -> list[dict[str, Any]]:
    """The objects of a run's log.txt."""
    return [values for _, values in read_appended(folder / "log.txt")]


def untimed_epochs(folder: Path) -> list[dict[str, Any]]:
    """The objects of a run's log.txt without what depends on the machine's speed."""
    return [{key: value for key, value in line.items() if key not in TIMED} for line in read_epochs(folder)]


def tensorboard_scalars(folder: Path, name: str = "train/loss") -> list[tuple[int, float]]:
    """(step, unrounded value) of every point of a TensorBoard curve."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def assert_same(one: Any, two: Any, where: str = "") -> None:
    """Nested values are equal to the last bit."""
    if isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_same(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two), where
        for number, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_same(a, b, f"{where}[{number}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two), where
    else:
        assert one == two, where


def assert_same_run(one: Path, two: Path) -> None:
    """Two checkpoints agree in everything but their paths and durations."""
    first, second = read_checkpoint(one), read_checkpoint(two)
    for key in ("model", "optimizer", "scaler", "epoch", "step", "metadata", "run"):
        assert_same(first[key], second[key], key)
    for key in ("best_val_loss", "best_epoch", "skipped_in_a_row"):
        assert first["progress"][key] == second["progress"][key]

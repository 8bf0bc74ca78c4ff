"""A complete tiny project for training tests: pictures, annotations and a configuration on the parity weights."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from minigpt4.common.checkpoint import read_checkpoint
from minigpt4.common.files import read_appended
from tests.models.parity import model_config

REPOSITORY = Path(__file__).parents[2]
PARITY_A = REPOSITORY / "tests" / "fixtures" / "parity_a"
WORDS = "a red green blue dog man tree house stands near the old wide river bridge and two"
LOG_LINE = re.compile(
    r"Train: data epoch: \[(?P<epoch>\d+)\]  \[ *(?P<iteration>\d+)/(?P<iterations>\d+)\]  "
    r"eta: (?P<eta>\d+:\d\d:\d\d)  lr: (?P<lr>\d+\.\d{6})  loss: (?P<loss>\d+\.\d{4}|nan)  "
    r"time: (?P<time>\d+\.\d{4})  data: (?P<data>\d+\.\d{4})  max mem: (?P<mem>\d+)"
)


def model_card(**changes: Any) -> dict[str, Any]:
    """The fixture's model, as plain values for YAML."""
    values = asdict(model_config(PARITY_A, prompt_path="prompts.txt"))
    for name in ("precision", "low_resource", "model_type", "arch"):
        values.pop(name)
    return values | changes


def read_epochs(file: Path) -> list[dict[str, Any]]:
    """The objects of log.txt."""
    return [values for _, values in read_appended(file)]


@contextmanager
def logging_restored() -> Iterator[None]:
    """Undo what a run does to logging, so that later tests do not write to its streams and files."""
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
    """A folder with a configuration, pictures and annotations of which each run is a variation."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, train: int = 24, val: int = 7) -> Project:
        """Draw the pictures and write everything."""
        draw = random.Random(0)
        rows = []
        for number in range(train + val):
            name = f"picture_{number}.png"
            colour = tuple(draw.randrange(256) for _ in range(3))
            picture = Image.new("RGB", (32, 24), colour)
            picture.paste((255, 255, 255), (number % 20, 5, number % 20 + 8, 12))
            picture.save(folder / name)
            answer = " ".join(draw.choices(WORDS.split(), k=draw.randint(3, 14)))
            rows.append({"image": name, "answer": answer, "split": "train" if number < train else "val"})
        (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "prompts.txt").write_text("<Img><ImageHere></Img> Describe it.\n<Img><ImageHere></Img> What is it?\n")
        (folder / "card.yaml").write_text(yaml.safe_dump(model_card()))
        config = {
            "model": {"model_type": "card.yaml"},
            "datasets": {
                "pictures": {"reader": "jsonl", "annotations": "data.jsonl", "batch_size": 4, "eval_batch_size": 3}
            },
            "run": {
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

    def command(
        self,
        *options: str,
        processes: int = 0,
        arguments: Sequence[str] = (),
        torchrun: Sequence[str] = ("--standalone",),
    ) -> list[str]:
        """The training command; `processes` above 0: under torchrun, with its arguments."""
        launcher = [sys.executable]
        if processes:
            launcher += ["-m", "torch.distributed.run", *torchrun, f"--nproc-per-node={processes}"]
        script = [str(REPOSITORY / "train.py"), "--cfg-path", "config.yaml", *arguments]
        return [*launcher, *script, *(["--options", *options] if options else [])]

    def start(self, *options: str, **launch: Any) -> subprocess.Popen[str]:
        """Start training in the project's folder, as `command` says; stdout and stderr come together."""
        return subprocess.Popen(
            self.command(*options, **launch),
            cwd=self.folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "160"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def train(self, *options: str, **launch: Any) -> tuple[int, str]:
        """Run training to its end, as `command` says: (exit status, what it printed)."""
        process = self.start(*options, **launch)
        output, _ = process.communicate(timeout=240)
        return process.returncode, output

    def train_here(self, *options: str, dry_run: bool = False) -> Path:
        """Train in this process, which is quicker to start; returns the folder that `run.run_dir` names.

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


def losses(output: str) -> dict[int, str]:
    """Printed losses by global step."""
    found = {}
    for match in LOG_LINE.finditer(output):
        found[int(match["epoch"]) * int(match["iterations"]) + int(match["iteration"])] = match["loss"]
    return found

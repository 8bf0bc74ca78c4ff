"""Peak memory of training runs on a CPU beside what `minigpt4 plan` predicts: `python -m benchmarks.memory`.

A run's memory is the high-water mark of its process above that of the same process after a small run, when Python and
torch are loaded. All samples are equally long, so that every batch is the longest. Weights are converted from bfloat16:
files in the run's own format are mapped, and rows of embeddings that no text uses never get into memory. The C library
is told to give memory back at once (MALLOC_MMAP_THRESHOLD_): otherwise it keeps freed pieces between those in use,
which a run could have used and the plan does not count; `--keep` shows what they come to.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.presets import PRESETS
from benchmarks.weight_files import model_config, write_weight_files
from minigpt4.common.config import load_config
from minigpt4.datasets.builders import build_datasets
from minigpt4.models.loading import build_prompt_encoder
from minigpt4.models.memory import empty_model, training_memory
from minigpt4.runners.plan import text_lengths

CAPTION = " ".join(["a red circle stands above two small blue squares and left of a green triangle"] * 6)
SAMPLES = 256
BATCH_SIZES = {"tiny": 64, "cpu": 4}
NOT_IN_FILES = ("arch", "model_type", "low_resource", "precision", "lora")


def write_project(preset: str, folder: Path, batch_size: int) -> Path:
    """Weights, data and the configuration of a run of four steps; returns the configuration."""
    model: dict[str, Any] = {"model_type": "tiny"}
    if preset != "tiny":
        write_weight_files(PRESETS[preset], torch.bfloat16, folder / "weights", with_bin=False, with_peer=False)
        values = asdict(model_config(folder / "weights", "llama"))
        model = {key: value for key, value in values.items() if key not in NOT_IN_FILES}
        (folder / "card.yaml").write_text(yaml.safe_dump(model))
        model = {"model_type": str(folder / "card.yaml")}
    Image.new("RGB", (96, 96), "red").save(folder / "image.png")
    row = json.dumps({"image": "image.png", "answer": CAPTION})
    (folder / "data.jsonl").write_text(f"{row}\n" * SAMPLES)
    (folder / "prompts.txt").write_text("<Img><ImageHere></Img> Describe it.\n")
    config = {
        "model": model | {"prompt_path": str(folder / "prompts.txt")},
        "datasets": {"same": {"reader": "jsonl", "annotations": str(folder / "data.jsonl")}},
        "run": {
            "batch_size": batch_size, "num_workers": 0, "device": "cpu", "iters_per_epoch": 4, "max_epoch": 1,
            "valid_splits": [], "train_splits": ["train"], "warmup_steps": 1,
        },
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def predicted(config: Path, world_size: int) -> int:
    """Bytes of a process by the plan."""
    cfg = load_config(config).config
    encoder = build_prompt_encoder(cfg.model)
    data = build_datasets(cfg.datasets, cfg.model, encoder, ["train"], seed=0, train=True)
    longest, targets = zip(*text_lengths(data, cfg.run.batch_size).longest, strict=True)
    model = empty_model(cfg.model, encoder, torch.float32)
    return training_memory(model, longest, targets, world_size=world_size).total


def measured(config: Path, world_size: int, keep: bool) -> int:
    """Most bytes of any process of a real run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    plain = {"OMP_NUM_THREADS": "1"} | ({} if keep else {"MALLOC_MMAP_THRESHOLD_": "65536"})
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "MEASURED_PROCESSES": str(world_size)}
    command = [sys.executable, "-m", "benchmarks.memory", "--run", str(config)]
    started = [
        subprocess.Popen(
            [*command, "--rank", str(rank)],
            env=os.environ | plain | shared,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(world_size)
    ]
    return max(int(process.communicate()[0].splitlines()[-1]) for process in started)


def run(config: Path, rank: int) -> None:
    """Train, after a small run that loads what a run needs beside tensors, and print the bytes of the second."""
    from minigpt4.runners.train import train

    first = str(config.parent / f"first_{rank}")
    train(load_config(config, ["run.batch_size=1", "run.iters_per_epoch=1", f"run.run_dir={first}"]))
    gc.collect()
    world_size = int(os.environ["MEASURED_PROCESSES"])
    if world_size > 1:
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
        os.environ.update({name: str(value) for name, value in own.items()})
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    base = memory("VmRSS")
    train(load_config(config, [f"run.run_dir={config.parent / f'run_{world_size}'}"]))
    sys.stdout.write(f"{memory('VmHWM') - base}\n")


def memory(name: str) -> int:
    """A number of bytes of this process, as Linux counts it."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["tiny", "cpu"], choices=["tiny", *PRESETS])
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batch-size", type=int, help=f"default: {BATCH_SIZES}")
    parser.add_argument("--keep", action="store_true", help="leave the C library as it is")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run is not None:
        return run(args.run, args.rank)
    table = Table("preset", "processes", "predicted (MB)", "measured (MB)", "measured / predicted")
    for preset in args.presets:
        for world_size in args.processes:
            with tempfile.TemporaryDirectory() as name:
                config = write_project(preset, Path(name), args.batch_size or BATCH_SIZES.get(preset, 2))
                plan, real = predicted(config, world_size), measured(config, world_size, args.keep)
            table.add_row(preset, str(world_size), f"{plan / 1e6:,.1f}", f"{real / 1e6:,.1f}", f"{real / plan:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()

"""Loading and starting up beside transformers' BLIP-2 with the same weights: python -m benchmarks.load"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe_machine
from benchmarks.one_load import KINDS
from benchmarks.presets import PRESETS
from benchmarks.weight_files import write_weight_files
from minigpt4.common.files import PROJECT
from minigpt4.runners.metrics import timed

DTYPES = ("float32", "bfloat16", "float16")
SAMPLING_SECONDS = 0.0005
COPIED_BYTES = 2**28
PACKAGE = "import minigpt4, minigpt4.common.config"
LIBRARIES = """
import torch, timm
from transformers import LlamaForCausalLM
torch.optim.AdamW([torch.zeros(1)])
"""
"""What a training process cannot do without; torch's optimizers import its compiler."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu")
    parser.add_argument("--stored", choices=DTYPES, default="float32", help="number format in the files")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="number format in memory")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="what is loaded")
    parser.add_argument("--no-start-up", action="store_true", help="measure loading only")
    parser.add_argument("--folder", help="where the temporary weight files go (default: the system's place)")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    return parser.parse_args()


def watched_load(kind: str, folder: Path, dtype: str, device: str) -> dict[str, float]:
    """One loading in a fresh process, its memory sampled from outside.

    Returns:
        Seconds until `loaded` and until every page of the weights was `read`; bytes of the `weights`, and
        bytes by which `anonymous` and `mapped` (file-backed) memory rose at most. An imported library is in neither.
    """
    command = [sys.executable, "-m", "benchmarks.one_load", kind, str(folder), dtype, device]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PROJECT) as process:
        assert process.stdin is not None and process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise SystemExit(f"loading ({kind}) did not start; its message stands above")
        before = _memory(process.pid)
        peak = dict(before)
        process.stdin.write("\n")
        process.stdin.flush()
        while not select.select([process.stdout], [], [], SAMPLING_SECONDS)[0]:
            peak = {name: max(peak[name], now) for name, now in _memory(process.pid).items()}
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"loading ({kind}) failed; its message stands above")
        return json.loads(line) | {name: peak[name] - before[name] for name in peak}


def _memory(pid: int) -> dict[str, int]:
    """Resident bytes of a process, by kind (Linux)."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: 1024 * int(fields[key].split()[0]) for name, key in (("anonymous", "RssAnon"), ("mapped", "RssFile"))}


def compare_loading(args: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Medians by kind, taken in turns after one uncounted round that fills the page cache."""
    rounds: dict[str, list[dict[str, float]]] = {kind: [] for kind in args.kinds}
    for number in range(args.rounds + 1):
        for kind in args.kinds:
            figures = watched_load(kind, folder, args.dtype, args.device)
            if number:
                rounds[kind].append(figures)
    return {
        kind: {name: median(one[name] for one in figures) for name in figures[0]} for kind, figures in rounds.items()
    }


def copy_bytes_per_second(device: torch.device) -> float:
    """How fast bytes in memory get to where the weights go, the median of seven."""
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8)
    target = torch.zeros(COPIED_BYTES, dtype=torch.uint8, device=device)
    return COPIED_BYTES / median(timed(lambda: target.copy_(source), device) for _ in range(7))


def process_seconds(code: str, rounds: int) -> float:
    """Seconds from starting Python to the end of `code`, the median."""
    device = torch.device("cpu")
    command = [sys.executable, "-c", code]
    return median(timed(lambda: subprocess.run(command, check=True, cwd=PROJECT), device) for _ in range(rounds))


def make_scenes(folder: Path) -> list[str]:
    """A few drawn scenes; the options with which the quick start's configuration trains on them."""
    run = [sys.executable, "dataset/make_scenes.py", "--out", str(folder), "--seed", "0"]
    quiet: dict[str, Any] = {"check": True, "cwd": PROJECT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*run, "--train", "32", "--val", "8", "--test", "8"], **quiet)
    table, images, out = folder / "flickr_annotations_30k.csv", folder / "images", folder / "flickr30k.json"
    prepare = ["prepare_flickr30k.py", "--annotations", str(table), "--images", str(images), "--out", str(out)]
    subprocess.run([sys.executable, *prepare], **quiet)
    return [f"datasets.scenes.annotations={out}", f"datasets.scenes.images={images}", "run.log_freq=1"]


def first_step_seconds(options: list[str]) -> float:
    """Seconds from launching train.py on the tiny model to the log line of its first step."""
    with tempfile.TemporaryDirectory() as run_folder:
        command = [sys.executable, "train.py", "--cfg-path", "train_configs/quickstart.yaml", "--options", *options]
        start = time.perf_counter()
        with subprocess.Popen(
            [*command, f"run.run_dir={run_folder}/run"],
            cwd=PROJECT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            said = []
            for line in process.stdout:
                said.append(line)
                if "epoch 0 (1/" in line:
                    seconds = time.perf_counter() - start
                    process.terminate()
                    process.stdout.read()
                    return seconds
        raise SystemExit("train.py ended before its first step:\n" + "".join(said[-20:]))


def start_up(rounds: int, folder: Path) -> dict[str, float]:
    """Seconds, each the median."""
    options = make_scenes(folder)
    return {
        "bare interpreter": process_seconds("", rounds),
        "import of the package": process_seconds(PACKAGE, rounds),
        "import of torch, timm, transformers": process_seconds(LIBRARIES, rounds),
        "train.py to its first step, tiny model": median(first_step_seconds(options) for _ in range(rounds)),
    }


def main() -> None:
    args = parse_arguments()
    device = torch.device(args.device)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        write_weight_files(
            PRESETS[args.preset],
            getattr(torch, args.stored),
            folder,
            with_bin="ours, .bin shards" in args.kinds,
            with_peer="peer" in args.kinds,
        )
        loading = compare_loading(args, folder)
        seconds = {} if args.no_start_up else start_up(args.rounds, folder / "scenes")
    weights = max(figures["weights"] for figures in loading.values())
    figures = {
        "machine": describe_machine(device),
        "preset": args.preset,
        "stored": args.stored,
        "dtype": args.dtype,
        "loading": loading,
        "floor_seconds": weights / copy_bytes_per_second(device),
        "start_up_seconds": seconds,
    }
    _show(figures)
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _show(figures: dict[str, Any]) -> None:
    console = Console(width=120)
    loading, floor = figures["loading"], figures["floor_seconds"]
    title = f"Loading, {figures['preset']} preset, {figures['stored']} files -> {figures['dtype']}"
    columns = ("", "loaded (s)", "and read (s)", "times as fast", "times the floor", "own memory", "mapped memory")
    table = Table(*columns, title=title, caption="memory: at most, over the weights' bytes")
    for kind, one in loading.items():
        ratio = f"{loading['peer']['read'] / one['read']:.2f}" if "peer" in loading else ""
        memory = (f"{one[name] / one['weights']:.2f}" for name in ("anonymous", "mapped"))
        times = f"{one['loaded']:.3f}", f"{one['read']:.3f}", ratio, f"{one['read'] / floor:.1f}"
        table.add_row(f"{kind} ({one['weights'] / 2**20:,.0f} MiB)", *times, *memory)
    table.add_row("floor: one copy of the bytes", "", f"{floor:.3f}", "", "1.0", "", "")
    console.print(table)
    if figures["start_up_seconds"]:
        starts = Table("start-up", "seconds")
        for name, seconds in figures["start_up_seconds"].items():
            starts.add_row(name, f"{seconds:.2f}")
        console.print(starts)
    console.print(figures["machine"])


if __name__ == "__main__":
    main()

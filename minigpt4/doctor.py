"""What a run needs and this machine has or lacks, one line each, with the remedy."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from minigpt4.common.cli import EXTRAS, add_options_argument, exit_on_error, run_files
from minigpt4.common.config import load_config
from minigpt4.common.errors import MiniGPT4Error, one_line
from minigpt4.common.files import DATA_VARIABLE, OUTPUT_VARIABLE, PROJECT, WEIGHTS_VARIABLE, near_path, nearest_existing
from minigpt4.common.schema import Config, LowResource
from minigpt4.common.sources import missing_files, source_of

DISTRIBUTION = "minigpt4-rebuilt"
INSTALL = "pip install -c constraints.txt -e '.[{}]'"
SHOWN_EXTRAS = {"train", "eval", "demo", "serve", "quant"}
"""Extras that users may miss."""
REINSTALL = "rm -rf .venv; make install"
GIGABYTE = 10**9
RESERVE = GIGABYTE
"""Bytes that a run's own files should find on the disk."""
NATIVE_BFLOAT16 = (8, 0)
"""Compute capability of the first NVIDIA GPUs (Ampere) that compute bfloat16 natively."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        name: what was looked at.
        text: what was found.
        remedy: what to do; empty: nothing.
        needed: nothing runs, or not what was asked about, before that is done.
    """

    name: str
    text: str
    remedy: str = ""
    needed: bool = True

    @property
    def failed(self) -> bool:
        """Whether something that is needed is missing or wrong."""
        return self.needed and bool(self.remedy)

    def __str__(self) -> str:
        mark = "FAIL" if self.failed else "note" if self.remedy else "ok"
        return f"{mark:5} {self.name}: {self.text}" + (f" -> {self.remedy}" if self.remedy else "")


def requirements() -> list[Requirement]:
    """What pyproject.toml requires, extras marked; on Python 3.10, which lacks a TOML reader, those installed."""
    try:
        import tomllib
    except ModuleNotFoundError:
        try:
            return [Requirement(line) for line in requires(DISTRIBUTION) or []]
        except PackageNotFoundError:
            return []
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].items()
    marked = [f'{line} ; extra == "{extra}"' for extra, lines in extras for line in lines]
    return [Requirement(line) for line in [*project["dependencies"], *marked]]


def installed(name: str) -> str | None:
    """The version of a package; None: it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def package_findings(required: Iterable[Requirement], used: Iterable[str] = ()) -> Iterator[Finding]:
    """Whether every package is there in a version that is allowed, those of extras in one line for each extra.

    Args:
        required: as of `requirements`.
        used: packages of extras that the configuration asks for.
    """
    wrong: list[str] = []
    absent: dict[str, list[str]] = defaultdict(list)
    checked = [item for item in required if item.name != DISTRIBUTION]  # which the extra `dev` names
    for item in checked:
        found = installed(item.name)
        extra = re.search(r'extra == "(\w+)"', str(item.marker))
        if found is None:
            absent[extra[1] if extra else ""].append(item.name)
        elif not item.specifier.contains(found, prereleases=True):
            wrong.append(f"{item.name} {found} (required: {item.specifier})")
    wrong += [f"{name} is missing" for name in absent.pop("", [])]
    if wrong or not checked:
        text = "; ".join(wrong) or "what is required is not known here"
        yield Finding("packages", text, "make install, or " + INSTALL.format("train,eval"))
    else:
        yield Finding("packages", f"{len(checked) - sum(map(len, absent.values()))} as required")
    for name in used:
        if installed(name) is None:
            remedy = INSTALL.format(EXTRAS[name]) if name in EXTRAS else f"pip install {name}"
            yield Finding("packages", f"{name} is missing, which the configuration asks for", remedy)
    for extra_name in sorted(SHOWN_EXTRAS & set(absent)):
        text = f"without {', '.join(absent[extra_name])}"
        yield Finding(f"extra {extra_name}", text, INSTALL.format(extra_name), needed=False)


def torch_findings(has_nvidia: bool) -> Iterator[Finding]:
    """Whether torch can be imported, fits torchvision and, where there is an NVIDIA GPU, can use it.

    Args:
        has_nvidia: the system has an NVIDIA GPU.
    """
    found = installed("torch")
    if found is None:
        return  # named among the packages
    for item in map(Requirement, requires("torchvision") or [] if installed("torchvision") else []):
        if item.name == "torch" and not item.marker and not item.specifier.contains(found, prereleases=True):
            text = f"{found}, but torchvision {installed('torchvision')} wants torch{item.specifier}"
            yield Finding("torch", text, REINSTALL)
            return
    try:
        torch: Any = importlib.import_module("torch")
        importlib.import_module("torchvision")
    except Exception as error:  # libraries that do not fit together raise nearly anything
        yield Finding("torch", f"{found} cannot be imported: {one_line(error, 150)}", REINSTALL)
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    if has_nvidia and not torch.version.cuda:
        yield Finding(
            "torch", f"{found} is a build without CUDA, but there is an NVIDIA GPU", "rm -rf .venv; make install"
        )
        return
    yield Finding("torch", f"{found}, {build}, {torch.get_num_threads()} threads")
    yield from _gpu_findings(torch, has_nvidia)


def _gpu_findings(torch: Any, has_nvidia: bool) -> Iterator[Finding]:
    if has_nvidia and not torch.cuda.is_available():
        text = f"driver {_driver()}; torch cannot use the GPU, for which it wants CUDA {torch.version.cuda}"
        yield Finding("GPU", text, "update the driver (nvidia-smi shows the newest CUDA that it knows)")
        return
    if not torch.cuda.is_available():
        yield Finding("GPU", "none; everything runs on the CPU")
        yield Finding("formats", "CPU: auto is float32; bfloat16 works too, and halves the memory of frozen weights")
        return
    for number in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        memory = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        yield Finding("GPU", f"cuda:{number} {card.name}, {memory}, driver {_driver()}")
        native = "bfloat16" if (card.major, card.minor) >= NATIVE_BFLOAT16 else "float16 with a loss scale"
        yield Finding("formats", f"cuda:{number}: auto is {native}")


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def java_finding() -> Finding:
    """Whether the tokenizer of the caption metrics finds a Java that runs."""
    from minigpt4.evaluation.java import check_tokenizer, find_java

    if installed("pycocoevalcap") is None:
        return Finding("Java", "not needed before the metrics are installed")
    try:
        check_tokenizer()
    except MiniGPT4Error as error:
        text, _, remedy = str(error).partition("; run: ")
        return Finding("Java", text, remedy or INSTALL.format("eval"))
    java = find_java()
    return Finding("Java", f"{java.version} ({java.source})")


def disk_findings(roots: Iterable[tuple[str, str, str]], missing: Iterable[str]) -> Iterator[Finding]:
    """Whether each folder can be written to, and its disk holds what is still to come.

    Weights and data that are all there may be on a disk that is read-only or full; every run writes to its output.

    Args:
        roots: (name, path, environment variable that moves it) of each folder; the folder need not exist yet.
        missing: paths of files that have to be brought.
    """
    coming = list(missing)
    for name, path, variable in roots:
        folder = nearest_existing(Path(path))
        sizes = [_bytes_of(file) for file in coming if Path(file).is_relative_to(path)]
        wanted, free = sum(sizes) + RESERVE, shutil.disk_usage(folder).free
        text = f"{path}: {free / GIGABYTE:,.1f} GB free"
        if not sizes and variable != OUTPUT_VARIABLE:
            yield Finding(f"disk, {name}", text)
        elif not (os.path.isdir(folder) and os.access(folder, os.W_OK)):
            yield Finding(f"disk, {name}", f"{folder} cannot be written to", f"set {variable} to another folder")
        elif free < wanted:
            remedy = f"make room, or set {variable} to a folder on another disk"
            yield Finding(f"disk, {name}", f"{text}, {wanted / GIGABYTE:,.1f} GB are wanted", remedy)
        else:
            yield Finding(f"disk, {name}", text)


def _bytes_of(path: str) -> float:
    source = source_of(path)
    match = re.fullmatch(r"([\d.]+) (MB|GB)", source.size) if source else None
    return float(match[1]) * {"MB": 10**6, "GB": GIGABYTE}[match[2]] if match else 0.0


def file_findings(files: Iterable[tuple[str, str]]) -> Iterator[Finding]:
    """The files of a configuration that are missing, each with where it comes from; or that all are there.

    Args:
        files: (key, path) of each.
    """
    wanted = list(files)
    missing = missing_files(wanted)
    for key, path in missing:
        source = source_of(path)
        remedy = source.command(path) if source else f"set it by --options {key}=PATH{near_path(path)}"
        yield Finding("file", f"{key}: {path} is missing", remedy)
    if not missing:
        yield Finding("files", f"all {len(wanted)} of the configuration are there")


def examine(cfg: Config) -> Iterator[Finding]:
    """Everything that a run of this configuration needs, what is quick first."""
    files = [*run_files(cfg.model, cfg.datasets)]
    missing = [path for _, path in missing_files(files)]
    roots = [
        ("output", cfg.paths.output_root, OUTPUT_VARIABLE),
        ("weights", cfg.paths.weights_root, WEIGHTS_VARIABLE),
        ("data", cfg.paths.data_root, DATA_VARIABLE),
    ]
    # A Python that is too old was refused when the package was imported.
    yield Finding("Python", f"{sys.version.split()[0]} ({sys.executable})")
    used = [*(["bitsandbytes"] if cfg.model.low_resource is not LowResource.off else []), *cfg.run.trackers]
    yield from package_findings(requirements(), used)
    yield java_finding()
    yield from disk_findings(roots, missing)
    yield from file_findings(files)
    yield from torch_findings(os.path.exists("/dev/nvidia0") or shutil.which("nvidia-smi") is not None)


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(prog="minigpt4 doctor", description=__doc__)
    parser.add_argument("--cfg-path", help="YAML file of a run, whose files are looked for (default: the tiny model)")
    add_options_argument(parser)
    return parser


@exit_on_error()
def main(arguments: Sequence[str] | None = None) -> int:
    """Print every finding as it is made; 1 if something that is needed is missing."""
    args = build_parser().parse_args(arguments)
    failed = 0
    for finding in examine(load_config(args.cfg_path, args.options).config):
        sys.stdout.write(f"{finding}\n")
        sys.stdout.flush()
        failed += finding.failed
    sys.stdout.write("all is well\n" if not failed else f"{failed} to be fixed\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

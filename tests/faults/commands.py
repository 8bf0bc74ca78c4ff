"""The project's commands on a few drawn scenes: what each needs, and what it leaves."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

from minigpt4.common.checkpoint import read_projection
from minigpt4.common.files import asset
from minigpt4.datasets.flickr30k_prepare import prepare
from minigpt4.scenes.files import ANNOTATIONS_NAME, write_scenes, write_shards
from tests.runners.project import REPOSITORY, TIMED, assert_same_run, read_epochs

DATA = "../../data"
"""Folder of the data, from a command's working folder."""
CONFIG = {
    "model": {"model_type": "tiny"},
    "datasets": {
        "scenes": {
            "card": "flickr30k",
            "annotations": f"{DATA}/flickr30k.json",
            "images": f"{DATA}/images",
            "target": "one",
        }
    },
    "run": {
        "batch_size": 4,
        "eval_batch_size": 6,
        "max_epoch": 2,
        "iters_per_epoch": 3,
        "save_freq": 2,
        "warmup_steps": 2,
        "init_lr": 1e-3,
        "log_freq": 1,
        "num_workers": 0,
        "device": "cpu",
        "run_dir": "out/train",
        "resume_ckpt_path": "auto",
    },
    "evaluation": {
        "batch_size": 3,
        "num_workers": 0,
        "metrics": ["bleu"],
        "generation": {"max_new_tokens": 12},
        "output_dir": "out/evaluation",
    },
    "curation": {
        "dir": "out/curation",
        "export_dir": "out/cc_sbu_align",
        "images": 7,
        "describe": {"batch_size": 3, "samples": 2, "min_tokens": 5, "generation": {"max_new_tokens": 12}},
        "refine": {"refiner": "local"},
        "filter": {"min_words": 1, "max_fragments": None, "min_english": None},
    },
}
CHECKPOINTS = [asset(f"tiny/{name}.pth") for name in ("stage1", "aligned")]
DATE = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d")
"""When an evaluation was made, in its results."""
LOGS = {"train.log"}
"""Files that an interrupted run adds to and nothing reads."""


@dataclass(frozen=True)
class Command:
    """A command whose results must not depend on what happens to it.

    Attributes:
        name: name in the table.
        lines: command lines, one after the other; after an interruption, all of them are given again.
        ranks: processes.
    """

    name: str
    lines: tuple[tuple[str, ...], ...]
    ranks: int = 1


def _curate(step: str, *more: str) -> tuple[str, ...]:
    return ("-m", "minigpt4.curate", step, *more, "--cfg-path", f"{DATA}/config.yaml")


_TRAIN = (str(REPOSITORY / "train.py"), "--cfg-path", f"{DATA}/config.yaml")
_EVALUATE = (str(REPOSITORY / "eval_scripts" / "eval_flickr30k.py"), "--cfg-path", f"{DATA}/config.yaml", "--ckpt")
_GENERATE = (
    *("-m", "minigpt4.generate", "--images", f"{DATA}/images", "--out", "out/answers[1].jsonl", "--batch-size", "4"),
    *("--options", "run.device=cpu", "evaluation.generation.max_new_tokens=12"),
)
_CACHED = (*_TRAIN, "--options", "datasets.scenes.feature_cache=out/cache", "run.save_freq=null")
_PRECOMPUTE = (
    *("-m", "minigpt4.runners.precompute", "--cfg-path", f"{DATA}/config.yaml"),
    *("--options", "datasets.scenes.feature_cache=out/cache"),
)
_CURATION = (
    _curate("describe"),
    _curate("refine"),
    _curate("filter"),
    _curate("review", "--accept-all"),
    _curate("export"),
)
_PREPARE = (
    *(str(REPOSITORY / "prepare_flickr30k.py"), "--annotations", f"{DATA}/{ANNOTATIONS_NAME}"),
    *("--images", f"{DATA}/images", "--out", "out/flickr30k.json"),
)
_INDEX = ("-m", "minigpt4.datasets.check", f"{DATA}/shards.yaml", "--no-images")
COMMANDS = (
    Command("training", (_TRAIN,)),
    Command("training, 2 processes", (_TRAIN,), ranks=2),
    Command("feature cache and training", (_CACHED,)),
    Command("feature cache, 2 processes", (_PRECOMPUTE,), ranks=2),
    Command("evaluation", ((*_EVALUATE, *CHECKPOINTS),)),
    Command("evaluation, 2 processes", ((*_EVALUATE, *CHECKPOINTS),), ranks=2),
    Command("generate", (_GENERATE,)),
    Command("generate, 2 processes", (_GENERATE,), ranks=2),
    Command("curation", _CURATION),
    Command("index of shards", (_INDEX,)),
    Command("prepare", (_PREPARE,)),
)


def write_data(folder: Path) -> None:
    """Everything that the commands read."""
    write_scenes(folder, {"train": 14, "val": 3, "test": 5}, seed=0)
    prepare(folder / ANNOTATIONS_NAME, folder / "images", folder / "flickr30k.json")
    write_shards(folder / "shards", scenes=12, per_shard=3, seed=0)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    shards = {"builder": "webdataset", "shards": f"{DATA}/shards/*/*/*.tar", "shard_index": "out/index"}
    (folder / "shards.yaml").write_text(yaml.safe_dump(shards))


def differences(folder: Path, expected: Path) -> list[str]:
    """What the results in `folder` lack, or have otherwise or beyond the expected ones.

    Weights agree to the bit, files to the byte; but in checkpoints and log.txt durations may differ, in results the
    date, .safetensors have no order of their metadata, and a feature cache may be divided into other files.
    """
    found, wanted = _contents(folder), _contents(expected)
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name} should not be there" for name in found if name not in wanted]
    return problems + [f"{name} differs" for name in wanted if name in found and found[name] != wanted[name]]


class _Checkpoint:
    """A .pth file, equal to another one that holds the same run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, _Checkpoint)
        try:
            assert_same_run(self.path, other.path)
        except AssertionError:
            return False
        return True


def _contents(folder: Path) -> Mapping[str, Any]:
    """What each file holds, by its path in the folder."""
    contents: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or path.name in LOGS:
            continue
        if path.suffix == ".pth":
            contents[name] = _Checkpoint(path)
        elif path.suffix == ".safetensors" and path.parent.name != "cache":
            weights, metadata = read_projection(path)
            contents[name] = metadata, {key: value.numpy().tobytes() for key, value in weights.items()}
        elif path.name == "log.txt":
            contents[name] = [{k: v for k, v in line.items() if k not in TIMED} for line in read_epochs(path.parent)]
        elif path.suffix == ".safetensors":
            contents |= _cached(path)
        else:
            contents[name] = DATE.sub(b"", path.read_bytes())
    return contents


def _cached(path: Path) -> dict[str, bytes]:
    with safe_open(path, "pt") as shard:
        names, rows = json.loads(shard.metadata()["names"]), shard.get_tensor("queries")
        return {f"features of {name}": row.numpy().tobytes() for name, row in zip(names, rows, strict=True)}

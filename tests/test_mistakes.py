"""The mistakes that users make, each with its answer: one line that says what is wrong and what to do next.

docs/troubleshooting.md explains them: `EXPLAINED`. `MISTAKES` and `ELSEWHERE` number them.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from minigpt4.__main__ import main
from minigpt4.common.cli import exit_on_error, require_files
from minigpt4.common.errors import ConfigError
from minigpt4.common.files import language_model_folder
from minigpt4.common.sources import in_cache
from tests.runners.project import PARITY_A, REPOSITORY, Project, logging_restored

Make = Callable[[Project], str]
TRAIN = ["train", "--cfg-path", "config.yaml"]
FLICKR = str(REPOSITORY / "train_configs" / "minigpt4_flickr_finetune.yaml")


class Payload:
    """Runs code when unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("ran",))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project.make(tmp_path_factory.mktemp("mistakes"))
    (project.folder / "birds.yaml").write_text("reader: jsonl\nannotatons: data.jsonl\n")
    (project.folder / "rows.yaml").write_text("reader: jsonl\nannotations: rows.jsonl\nimages: .\n")
    (project.folder / "rows.jsonl").write_text('{"image": "image_0.png", "answer": "a"}\n{"img": "image_1.png"}\n')
    (project.folder / "broken.yaml").write_text("run:\n  seed: 1\n   max_epoch: 2\n")
    (project.folder / "tab.yaml").write_text("run:\n\tseed: 1\n")
    (project.folder / "flickr.yaml").write_text(
        "model: {model_type: card.yaml}\ndatasets: {flickr30k: {images: .}}\nrun: {device: cpu}\n"
    )
    return project


def ask(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Run `minigpt4 ARGUMENTS` in this process: (exit status, stdout, stderr)."""
    with logging_restored():
        try:
            status = main(list(arguments))
        except SystemExit as end:
            status = int(end.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def damaged(project: Project, name: str, content: object) -> str:
    torch.save(content, project.folder / name)
    return name


def wider(project: Project) -> str:
    state = {"llama_proj.weight": torch.zeros(5120, 48), "llama_proj.bias": torch.zeros(5120)}
    return damaged(project, "wider.pth", {"model": state})


def truncated(project: Project) -> str:
    content = (PARITY_A / "minigpt4.pth").read_bytes()
    (project.folder / "truncated.pth").write_bytes(content[: len(content) // 2])
    return "truncated.pth"


def without_placeholder(project: Project) -> str:
    (project.folder / "bad_prompts.txt").write_text("Describe it.\n")
    return "bad_prompts.txt"


def broken_rows(project: Project) -> str:
    (project.folder / "broken.jsonl").write_text('{"image": "image_0.png", "answer": "a"}\n{"image": \n')
    return "broken.jsonl"


ELSEWHERE = {
    12: "tests/web/test_demo.py::test_mistakes_end_with_one_line",  # --gpu-id of a GPU that is not there
    21: "tests/runners/test_checkpoints.py::test_a_folder_that_would_mix_two_runs_is_refused",
    28: "tests/evaluation/test_results.py::test_rows_of_the_same_protocol_are_kept",  # an evaluation without --ckpt
    32: "tests/web/test_demo.py::test_a_port_that_is_taken_is_found_before_anything_is_loaded",
    34: "tests/test_main.py::test_an_old_python_is_named",
    35: "tests/test_main.py::test_a_clone_that_is_not_installed_says_what_to_run",
}
"""Mistakes whose answers other files test."""
MISTAKES: list[tuple[int, list[str], Make | None, list[str]]] = [
    (1, [*TRAIN, "--options", "run.max_epochs=3"], None, ["run.max_epochs: unknown key; did you mean 'max_epoch'?"]),
    (1, [*TRAIN, "--options", "runn.seed=3"], None, ["runn: unknown key; did you mean 'run'?"]),
    (2, ["train", "--cfg-path", "confg.yaml"], None, ["confg.yaml does not exist", "did you mean 'config.yaml'?"]),
    (2, ["demo", "--cfg-path", "minigpt4_evl.yaml"], None, ["did you mean '", "eval_configs/minigpt4_eval.yaml'?"]),
    (3, [*TRAIN, "--options", "run.max_epoch=five"], None, ["run.max_epoch", "'five': a whole number is expected"]),
    (4, ["train", "--cfg-path", "flickr.yaml"], None, ["datasets.flickr30k.annotations", "minigpt4 prepare"]),
    (
        4,
        ["prepare"],
        None,
        ["--annotations: data/", "--images: data/", "hf download nlphuji/", "[14 MB]", "[4.4 GB]"],
    ),
    (
        5,
        ["train", "--cfg-path", FLICKR],
        None,
        [
            "6 files and folders are missing",
            "hf download Vision-CAIR/vicuna-7b --local-dir weights/vicuna-7b [13.5 GB]",
            "eva_vit_g.pth [2.0 GB]",
            "[37 MB]",
            "minigpt4 prepare",
            "MINIGPT4_WEIGHTS",
            "A rehearsal without the weights: --options model.arch=minigpt4 model.model_type=tiny",
        ],
    ),
    (
        5,
        ["plan", "--cfg-path", FLICKR],
        None,
        [
            "hf download Vision-CAIR/vicuna-7b --include config.json --include 'tokenizer*' --local-dir weights/",
        ],
    ),
    (5, [*TRAIN, "--options", "model.llama_model=nowhere"], None, ["model.llama_model: nowhere", "MINIGPT4_WEIGHTS"]),
    (5, [*TRAIN, "--options", "datasets.shapes.annotations=dta.jsonl"], None, ["did you mean 'data.jsonl'?", "_DATA"]),
    (6, ["generate", "--ckpt", "none.pth", "--images", ".", "--out", "o"], None, ["--ckpt: none.pth does not exist"]),
    (7, [*TRAIN, "--options", f"model.ckpt={PARITY_A / 'qformer.pth'}"], None, ["is no checkpoint of this model"]),
    (8, [*TRAIN, "--options", "model.ckpt="], wider, ["wider.pth", "(5120, 48)", "(64, 48)"]),
    (9, [*TRAIN, "--options", "model.ckpt=prompts.txt"], None, ["prompts.txt is no checkpoint (not written by torch"]),
    (9, [*TRAIN, "--options", "model.ckpt="], truncated, ["truncated.pth is truncated"]),
    (
        9,
        [*TRAIN, "--options", "model.ckpt="],
        lambda project: damaged(project, "code.pth", {"model": Payload()}),
        ["code.pth", "would run code"],
    ),
    (10, ["chat", "--image", "nope.png"], None, ["image nope.png does not exist"]),
    (11, ["chat", "--image", "prompts.txt"], None, ["prompts.txt cannot be read: it is not an image", "use JPEG, PNG"]),
    (13, [*TRAIN, "--options", "run.device=cuda"], None, ["torch finds no GPU; set run.device=cpu"]),
    (13, [*TRAIN, "--options", "run.device=tpu"], None, ["run.device: 'tpu' should be auto, cpu or cuda"]),
    (14, [*TRAIN, "--options", "model.low_resource=8bit"], None, ["8bit needs bitsandbytes", "-e '.[quant]'"]),
    (16, ["train", "--cfg-path", "train_configs/mine.yaml"], None, ["does not exist (the current folder is "]),
    (
        17,
        ["train", "--cfg-path", str(REPOSITORY / "train_configs" / "quickstart.yaml")],
        None,
        ["output/quickstart/scenes/flickr30k.json", "make quickstart", "the current folder is ", "MINIGPT4_OUTPUT"],
    ),
    (18, [*TRAIN, "--options", "run.max_epoch", "3"], None, ["'run.max_epoch' has no '='; write KEY=VALUE"]),
    (19, ["train", "--cfg-path", "broken.yaml"], None, ["broken.yaml: not readable as YAML", "line 3"]),
    (19, ["train", "--cfg-path", "tab.yaml"], None, ["tab.yaml: not readable as YAML: line 2 begins with a tab"]),
    (20, [*TRAIN, "--options", "run.valid_splits=[tst]"], None, ["there is no split 'tst'", "train (24)", "val (7)"]),
    (22, [*TRAIN, "--options", "run.resume_ckpt_path=no.pth"], None, ["run.resume_ckpt_path: no.pth does not exist"]),
    (22, [*TRAIN, "--options", "run.resume_ckpt_path="], truncated, ["truncated.pth is truncated"]),
    (23, [*TRAIN, "--options", "run.trackers=[tensorbord]"], None, ["did you mean 'tensorboard'"]),
    (24, [*TRAIN, "--options", "run.trackers=[wandb]"], None, ["wandb is not installed; run: pip install"]),
    (25, ["check", "birds.yaml"], None, ["annotatons: unknown key; did you mean 'annotations'?"]),
    (29, [*TRAIN, "--options", "model.model_type=vicuna"], None, ["no card 'vicuna'"]),
    (
        29,
        [*TRAIN, "--options", "run.lr_sched=cosine"],
        None,
        ["unknown learning-rate schedule", "linear_warmup_c"],
    ),
    (29, [*TRAIN, "--options", "run.task=captioning"], None, ["unknown task 'captioning'"]),
    (30, [*TRAIN, "--options", "model.vit_model=vit_tny_patch16_224"], None, ["did you mean 'vit_tiny_patch16_224'?"]),
    (33, [*TRAIN, "--options", "model.llama_model=Qwen/Qwen2.5-0.5B"], None, ["hf download Qwen/Qwen2.5-0.5B --local"]),
    # Of the same kinds as above.
    (26, [*TRAIN, "--options", "model.prompt_path="], without_placeholder, ["bad_prompts.txt, line 1", "<ImageHere>"]),
    (26, [*TRAIN, "--options", "datasets.shapes.annotations="], broken_rows, ["broken.jsonl, line 2", "broken JSON"]),
]
"""Number, command line (with the path that is made first at its end), and parts of the message."""
TROUBLESHOOTING = (REPOSITORY / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
EXPLAINED = [
    re.compile(".*".join(map(re.escape, message.split("..."))))
    for row in re.findall(r"^\| (.*?) \|", TROUBLESHOOTING, flags=re.MULTILINE)
    for message in re.findall(r"`([^`]*)`", row)
]
"""The messages that the documentation explains; `...` stands for anything there."""
TESTED_BELOW = {15, 26, 27, 31, 33}


@pytest.mark.parametrize(
    ("number", "arguments", "make", "parts"),
    MISTAKES,
    ids=[f"{number}-{index}" for index, (number, *_) in enumerate(MISTAKES)],
)
def test_a_mistake_is_one_clear_message(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    arguments: list[str],
    make: Make | None,
    parts: list[str],
) -> None:
    monkeypatch.chdir(project.folder)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for absent in ("bitsandbytes", "wandb"):
        monkeypatch.setitem(sys.modules, absent, None)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    if make is not None:
        arguments = [*arguments[:-1], arguments[-1] + make(project)]
    status, out, err = ask(arguments, capsys)
    assert status == 2, err
    message = err[err.index("error: ") :]
    assert err.count("error: ") == 1 and "Traceback" not in err and "ran" not in out.split()
    assert not [part for part in parts if part not in message], message
    assert any(pattern.search(message) for pattern in EXPLAINED), f"docs/troubleshooting.md does not explain: {message}"
    assert not (project.folder / "output").exists()


def unreachable(*_: Any, **__: Any) -> None:
    raise OSError("Name or service not known")


def test_every_mistake_of_the_list_is_tested() -> None:
    assert {number for number, *_ in MISTAKES} | set(ELSEWHERE) | TESTED_BELOW == set(range(1, 36))
    for place in ELSEWHERE.values():
        file, name = place.split("::")
        tests = ast.walk(ast.parse((REPOSITORY / file).read_text(encoding="utf-8")))
        assert name in {node.name for node in tests if isinstance(node, ast.FunctionDef)}, place


def test_bad_rows_are_all_named(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project.folder)
    status, out, _ = ask(["check", "rows.yaml"], capsys)
    assert status == 1
    assert "rows.jsonl, line 2: no 'image'; found: img ('img': did you mean 'image'?)" in out


def test_amp_on_a_cpu_is_explained_and_a_batch_beyond_the_data_is_warned_of(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project.folder)
    status, _, err = ask([*TRAIN, "--dry-run", "--options", "run.amp=true", "run.batch_size=30"], capsys)
    assert status == 0, err
    assert "frozen weights in float32" in err
    assert "a step has 30 samples, but there are only 24 to train on" in err


def test_torchruns_report_ends_with_the_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    with pytest.raises(SystemExit), exit_on_error():
        raise ConfigError("run.device: 'tpu' should be auto, cpu or cuda")
    capsys.readouterr()
    assert "timestamp" in json.loads(file.read_text())["message"]["extraInfo"]
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(file))
    lines = str(ChildFailedError("train.py", {0: failure})).splitlines()
    last = [line for line in lines if line.strip("=- ")][-1]
    assert last.strip() == "traceback : error: run.device: 'tpu' should be auto, cpu or cuda"


def test_of_the_processes_of_a_machine_the_first_names_missing_files(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = [("model.ckpt", "none.pth"), ("model.vit_weights", "none_either.pth")]
    monkeypatch.setenv("LOCAL_RANK", "1")
    require_files(missing)
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ConfigError, match="2 files and folders are missing"):
        require_files(missing)


class Hub:
    """A model of the hub, with its cache: what `snapshot_download` makes of it, without a network.

    Attributes:
        cached: files in the cache.
        online: whether the network answers.
    """

    FILES = ("config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin", "model.gguf")

    def __init__(self, folder: Path) -> None:
        self.folder, self.online = folder, True

    @property
    def cached(self) -> set[str]:
        return {file.name for file in self.folder.iterdir()}

    def model_info(self, *_: Any, **__: Any) -> Any:
        return type(
            "Info", (), {"siblings": [huggingface_hub.hf_api.RepoSibling(rfilename=name) for name in self.FILES]}
        )

    def download(
        self,
        name: str,
        local_files_only: bool = False,
        allow_patterns: Sequence[str] | None = None,
        ignore_patterns: Sequence[str] | None = None,
    ) -> str:
        """As the hub's own: files that are not ignored and missing in the cache are an error without a network."""
        wanted = huggingface_hub.utils.filter_repo_objects(
            self.FILES, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        )
        missing = {*wanted} - self.cached
        if missing and (local_files_only or not self.online):
            raise OSError(f"the cached snapshot lacks {missing}")
        for file in missing:
            (self.folder / file).write_text("{}")
        return str(self.folder)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    (tmp_path / "cache").mkdir()
    hub = Hub(tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", hub.model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.download)
    return hub


class TestModelsOfTheHub:
    def test_it_is_downloaded_once_without_formats_that_are_not_read(self, hub: Hub) -> None:
        assert language_model_folder("Qwen/Qwen2.5-0.5B", "model.llama_model") == hub.folder
        assert hub.cached == {"config.json", "tokenizer.json", "model.safetensors"}
        hub.online = False
        assert language_model_folder("Qwen/Qwen2.5-0.5B", "model.llama_model") == hub.folder

    def test_a_plan_downloads_no_weights_and_a_run_does_not_take_its_files_for_the_model(self, hub: Hub) -> None:
        assert language_model_folder("Qwen/Qwen2.5-0.5B", "model.llama_model", weights=False) == hub.folder
        assert hub.cached == {"config.json", "tokenizer.json"}
        hub.online = False
        assert language_model_folder("Qwen/Qwen2.5-0.5B", "model.llama_model", weights=False) == hub.folder
        with pytest.raises(ConfigError, match=r"hf download Qwen/Qwen2\.5-0\.5B --local-dir"):
            language_model_folder("Qwen/Qwen2.5-0.5B", "model.llama_model")
        hub.online = True
        language_model_folder("Qwen/Qwen2.5-0.5B", "model.llama_model")
        assert "model.safetensors" in hub.cached

    def test_shards_that_are_missing_in_the_cache_are_not_taken_for_all(
        self, hub: Hub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
        for name, content in (
            ("config.json", {}),
            ("model.safetensors.index.json", index),
            ("model-1.safetensors", {}),
        ):
            (hub.folder / name).write_text(json.dumps(content))
        # An older cache does not know which files there are.
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(hub.folder))
        assert in_cache("Qwen/Qwen2.5-0.5B", weights=True) is None
        (hub.folder / "model-2.safetensors").touch()
        assert in_cache("Qwen/Qwen2.5-0.5B", weights=True) == hub.folder

    @pytest.mark.parametrize("path", ["weights/vicuna-7b", "weights/mine", "here/mine", "heer/mine", "./a/b", "a/b/c"])
    def test_the_network_is_not_asked_for_what_looks_like_a_path(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "here").mkdir()
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the network"))
        with pytest.raises(ConfigError, match="does not exist"):
            language_model_folder(path, "model.llama_model")

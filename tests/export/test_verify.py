"""Exports and their comparison with the model, which planted errors do not pass."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from minigpt4.api import from_config
from minigpt4.common.checkpoint import write_checkpoint
from minigpt4.common.config import load_config
from minigpt4.common.errors import ExportError
from minigpt4.common.files import PROJECT
from minigpt4.export import __main__ as command
from minigpt4.export import model_folder, reload, verify
from minigpt4.export.verify import Check
from minigpt4.processors.image import CLIP
from tests.drawn import drawn_scenes
from tests.export.conftest import Exported
from tests.launch import launch

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")  # transformers'
WEIGHTS = "model.safetensors"
RUN_FRESH = verify.run_fresh
"""Before a fixture replaces it."""


@pytest.fixture(scope="module")
def compared(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], dict[str, Check]]:
    """Compares a folder with the model of `exported`, whose side is computed once."""
    work = tmp_path_factory.mktemp("work")
    loaded = from_config(exported.cfg, device="cpu", precision="float32")
    ours = verify.compute(loaded, verify.EXAMPLES[:2], 800, work)

    def compare(folder: Path) -> dict[str, Check]:
        reload.main(str(folder), str(work))
        theirs, faults = verify.read_reply(work, "###")
        checks = verify.compare(ours, theirs, faults, torch.float32, CLIP)
        return {each.what: each for each in checks}

    return compare


def test_a_published_layout_is_exported_and_verified(exported: Exported) -> None:
    names = {path.name for path in exported.folder.iterdir()}
    assert names == {
        *("README.md", "config.json", "generation_config.json", WEIGHTS),
        *("processor_config.json", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"),
    }
    card = (exported.folder / "README.md").read_text(encoding="utf-8")
    assert "| number format | float32 | any |" in card and "It loads in float16" in card
    assert "| greedy answers | 2 of 2 equal | all |" in card and "Not verified" not in card
    settings = json.loads((exported.folder / "generation_config.json").read_text())
    assert (settings["max_new_tokens"], settings["eos_token_id"][0]) == (6, 2)


def edit_json(file: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def swap_biases(folder: Path) -> None:
    """Queries' and values' biases of one block change places."""
    state = load_file(folder / WEIGHTS)
    name = "vision_model.encoder.layers.1.self_attn.qkv.bias"
    query, key, value = state[name].chunk(3)
    state[name] = torch.cat([value, key, query])
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def lose_a_tensor(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    state.pop("language_projection.bias")
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def allow_more_tokens(folder: Path) -> None:
    edit_json(folder / "config.json", lambda it: it["text_config"].update(max_new_tokens=9))


def forget_the_end(folder: Path) -> None:
    """Generation continues past the end; the stop strings of the comparison would hide it."""
    edit_json(folder / "generation_config.json", lambda it: it.pop("eos_token_id"))
    edit_json(folder / "config.json", lambda it: it["text_config"].update(eos_token_id=None))


def change_a_mean(folder: Path) -> None:
    edit_json(folder / "processor_config.json", lambda it: it["image_processor"]["image_mean"].__setitem__(0, 0.485))


def resize_by_nearest(folder: Path) -> None:
    edit_json(folder / "processor_config.json", lambda it: it["image_processor"].update(resample=0))


def pad_on_the_right(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", lambda it: it.update(padding_side="right"))


def forget_word_marks(folder: Path) -> None:
    edit_json(folder / "tokenizer.json", lambda it: it["normalizer"]["normalizers"].pop(0))


def change_the_template(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    text = file.read_text(encoding="utf-8")
    assert " ###Assistant: " in text
    file.write_text(text.replace(" ###Assistant: ", " ###Assistant:"), encoding="utf-8")


@pytest.mark.parametrize(
    ("plant", "finds"),
    [
        (swap_biases, {"image embeddings", "logits"}),
        (lose_a_tensor, {"weights by name", "logits"}),
        (allow_more_tokens, {"generation settings"}),
        (forget_the_end, {"generation settings"}),
        (change_a_mean, {"pixels, not resized"}),
        (resize_by_nearest, {"pixels of 2 images, resized"}),
        (pad_on_the_right, {"greedy answers, padded batch"}),
        (forget_word_marks, {"token ids of awkward texts", "token ids of prompts"}),
        (change_the_template, {"token ids of prompts"}),
    ],
)
def test_planted_errors_are_found(
    plant: Callable[[Path], None],
    finds: set[str],
    exported: Exported,
    compared: Callable[[Path], dict[str, Check]],
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(exported.folder, tmp_path / "planted")
    plant(folder)
    found = {name for name, check in compared(folder).items() if not check.passed}
    assert finds <= found, found
    if "token ids of prompts" not in finds:
        assert "token ids of prompts" not in found
    if plant is resize_by_nearest:
        assert found == finds, "answers are about images that were resized before"


def test_a_dropped_template_is_an_error_of_transformers(
    exported: Exported, compared: Callable[[Path], dict[str, Check]], tmp_path: Path
) -> None:
    folder = shutil.copytree(exported.folder, tmp_path / "planted")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="does not have a chat template"):
        compared(folder)


def test_the_other_side_runs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = ast.parse(verify.SCRIPT.read_text(encoding="utf-8"))
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert "transformers" in modules and not [name for name in modules if name.startswith("minigpt4")]
    script = tmp_path / "script.py"
    script.write_text("import sys\nprint(sys.argv[1:], sys.path[0])\nraise ValueError('no such template')")
    monkeypatch.setattr(verify, "SCRIPT", script)
    with pytest.raises(ExportError, match=r"fails with the export: ValueError: no such template$"):
        RUN_FRESH(tmp_path, tmp_path)
    script.write_text("import os, sys\nprint('a warning', file=sys.stderr)\nos.kill(os.getpid(), 9)")
    with pytest.raises(ExportError, match=r"SIGKILL ended the process .* memory .*model\.precision=bfloat16"):
        RUN_FRESH(tmp_path, tmp_path)


def test_what_differs_is_not_kept(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = [Check("pixels", "at most 0", "0", True), Check("logits", "at most 3", "1", False)]
    monkeypatch.setattr(verify, "verify", lambda *_: checks)
    with pytest.raises(
        ExportError, match=r"the export differs from the model: logits \(at most 3, allowed: 1\); nothing"
    ):
        command.export(exported.cfg, tmp_path / "out", verify.EXAMPLES[:1])
    assert "DIFFERS: at most 3" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_an_export_that_is_not_verified_says_so(exported: Exported, tmp_path: Path) -> None:
    command.export(exported.cfg, tmp_path / "out", [])
    assert "**Not verified**" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (exported.folder / WEIGHTS).read_bytes()


def test_an_export_ends_at_every_token_that_ends_an_answer_here(exported: Exported, tmp_path: Path) -> None:
    llama = shutil.copytree(str(exported.cfg.model.llama_model), tmp_path / "llama")
    edit_json(llama / "generation_config.json", lambda it: it.update(eos_token_id=[2, 7]))
    model = replace(exported.cfg.model, llama_model=str(llama))
    command.export(replace(exported.cfg, model=model), tmp_path / "out", [])
    ends = json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]
    assert ends[:2] == [2, 7] and len(ends) == len(set(ends)) > 2


def test_answers_that_would_begin_with_an_end(
    exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    llama = shutil.copytree(str(exported.cfg.model.llama_model), tmp_path / "llama")
    state = load_file(llama / WEIGHTS)
    state["lm_head.weight"][2] *= 10
    save_file(state, llama / WEIGHTS, metadata={"format": "pt"})
    cfg = replace(exported.cfg, model=replace(exported.cfg.model, llama_model=str(llama)))
    scenes = [Path(scene.save(tmp_path / f"{number}.png")) for number, scene in enumerate(drawn_scenes()[:8])]
    command.export(cfg, tmp_path / "out", scenes)
    assert "DIFFERS" not in capsys.readouterr().out
    assert "begin_suppress_tokens=[2])" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")

    monkeypatch.setattr(model_folder, "_decoding", lambda *_: {})
    with pytest.raises(ExportError, match=r"greedy answers \([0-7] of 8 equal"):
        command.export(cfg, tmp_path / "other", scenes)


def test_numbers_that_are_not_finite_agree_with_nothing() -> None:
    ours = torch.zeros(2, 3)
    for theirs in (ours + torch.nan, ours + torch.inf, torch.zeros(2, 4)):
        assert not verify._close("", ours + torch.arange(3), theirs, 1e9).passed
    assert not verify._equal("", ["a", "b"], ["a"]).passed


def test_the_aligned_model_with_adapters_is_exported_merged(
    tmp_path: Path, in_this_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["model.ckpt=${asset:tiny/aligned.pth}", "model.lora.r=4", "evaluation.generation.max_new_tokens=40"]
    with_lora = from_config(load_config(None, options).config, device="cpu", precision="float32").model
    generator = torch.Generator().manual_seed(0)
    assert with_lora.adapters is not None
    for name in with_lora.adapters.names:
        parameter = with_lora.get_parameter(name)
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    checkpoint = tmp_path / "lora.pth"
    write_checkpoint(checkpoint, {"model": with_lora.trainable_state(), "metadata": with_lora.metadata()})
    cfg = load_config(None, [*options, f"model.ckpt={checkpoint}"]).config
    scene = Path(drawn_scenes()[0].save(tmp_path / "scene.png"))
    command.export(cfg, tmp_path / "out", [verify.EXAMPLES[0], scene])
    assert "DIFFERS" not in capsys.readouterr().out
    state = load_file(tmp_path / "out" / WEIGHTS)
    formats = {
        name.rpartition("self_attn.")[2]: tensor.dtype for name, tensor in state.items() if "layers.0.self" in name
    }
    assert (formats["v_proj.weight"], formats["k_proj.weight"]) == (torch.float32, torch.float16)


@pytest.mark.slow
def test_the_command_runs_the_folder_in_a_new_process(tmp_path: Path) -> None:
    done = launch(
        *("-m", "minigpt4.export", "--cfg-path", str(PROJECT / "eval_configs" / "quickstart.yaml")),
        *("--ckpt", str(PROJECT / "minigpt4" / "assets" / "tiny" / "aligned.pth"), "--out", str(tmp_path / "out")),
    )
    assert done.returncode == 0, done.stderr
    assert "wrote" in done.stdout and "DIFFERS" not in done.stdout
    assert "Answers end with '###', which is text and no token" in done.stdout

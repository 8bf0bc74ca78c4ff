"""The shipped configurations of MiniGPT-v2, on small random weights in the published layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from minigpt4.api import load
from minigpt4.common.config import load_config
from minigpt4.common.files import PROJECT
from minigpt4.runners.train import train
from tests.drawn import drawn_scenes
from tests.models.parity import Case
from tests.runners.project import logging_restored


@pytest.fixture
def options(parity_v: Case) -> list[str]:
    """What makes the shipped card fit the small weights."""
    sizes, folder = parity_v.config, parity_v.folder
    vit = {key: sizes["vit"][key] for key in ("embed_dim", "num_heads", "mlp_ratio")} | {"patch_size": sizes["patch"]}
    values = {
        "model.vit_weights": folder / "eva_vit.pth",
        "model.vit_blocks": sizes["vit"]["depth"],
        "model.vit_args": yaml.safe_dump(vit, default_flow_style=True).strip(),
        "model.image_size": sizes["image_size"],
        "model.llama_model": folder / "llama",
        "model.ckpt": folder / "minigpt4.pth",
        "model.lora.r": sizes["lora"]["r"],
        "run.device": "cpu",
    }
    return [f"{key}={value}" for key, value in values.items()]


def test_a_dry_run_shows_every_answer_of_a_conversation_as_trained(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn_scenes()[0].save(tmp_path / "a.png")
    turns = [{"question": "[vqa] What is it?", "answer": "a dog"}, {"question": "[vqa] Why?", "answer": "no"}]
    rows = [{"image": "a.png", "id": str(number), "conversation": turns, "split": "train"} for number in range(3)]
    rows[2]["split"] = "val"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = [f"datasets.conversations.{key}={path}" for key, path in (
        ("annotations", tmp_path / "rows.jsonl"), ("images", tmp_path))]  # fmt: skip
    loaded = load_config(PROJECT / "train_configs" / "minigptv2_finetune.yaml", [*options, *data])
    with logging_restored():
        train(loaded, dry_run=True)
    shown = "".join(line.strip(" │\n") for line in capsys.readouterr().out.splitlines())
    assert "[BOS][INST] <Img><ImageHere>*9</Img> [vqa] What is it? [/INST][[a dog</s>]]" in shown
    assert "[[no</s>]]" in shown and shown.count("[BOS]") == 2


def test_the_published_layout_answers(options: list[str], tmp_path: Path) -> None:
    model = load(PROJECT / "eval_configs" / "minigptv2_eval.yaml", options=options, device="cpu")
    image = drawn_scenes()[0].save(tmp_path / "a.png")
    assert model.model.query_width == 4 * 64 and model.model.adapters is not None
    assert model.defaults.max_new_tokens == 300
    chat = model.chat()
    chat.ask("[caption] Describe it.", [image], max_new_tokens=4)
    chat.ask("Why?", max_new_tokens=4)
    assert chat.prompt.startswith("[INST] <Img><ImageHere></Img> [caption] Describe it. [/INST]")
    assert chat.prompt.endswith("</s><s>[INST] Why? [/INST]")

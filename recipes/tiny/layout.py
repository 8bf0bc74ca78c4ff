"""Writing of the tiny weights in the layouts of the published files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from minigpt4.common.checkpoint import write_checkpoint
from minigpt4.models.minigpt4 import MiniGPT4
from recipes.tiny.vision import VisionModel

VIT_FILE, QFORMER_FILE, LLAMA_FOLDER, STAGE1_FILE = "eva_vit.pth", "qformer.pth", "llama", "stage1.pth"


def save_vision(model: VisionModel, folder: Path) -> None:
    """Write `eva_vit.pth` (timm's names) and `qformer.pth` (BLIP-2's names under "model"), in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    write_checkpoint(folder / VIT_FILE, _half(model.encoder.backbone.state_dict()))
    write_checkpoint(folder / QFORMER_FILE, {"model": _half(model.qformer.published_state())})


def save_language_model(model: LlamaForCausalLM, folder: Path) -> None:
    """Write a Hugging Face LLaMA folder, in half precision; the tokenizer's files are there already."""
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config.to_diff_dict() | {"architectures": ["LlamaForCausalLM"], "dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = folder / "model.safetensors"
    save_file(_half(model.state_dict()), weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors makes it readable to its owner alone
    specials = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(specials, indent=2) + "\n", encoding="utf-8")


def save_stage1(model: MiniGPT4, folder: Path) -> None:
    """Write the projection as a training checkpoint holds it, with what it was trained for."""
    write_checkpoint(folder / STAGE1_FILE, {"model": model.trainable_state(), "metadata": model.metadata()})


def _half(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to(torch.float16).contiguous() for name, tensor in state.items()}

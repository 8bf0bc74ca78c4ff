"""A preset's random weights as files: in the published layouts for us, by save_pretrained for the peer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from torch import Tensor, nn

from benchmarks.presets import IMAGE_SIZE, VOCABULARY, Preset, build_ours, build_peer
from minigpt4.common.files import asset
from minigpt4.common.schema import ModelConfig
from minigpt4.models.minigpt4 import MiniGPT4

SHARD_BYTES = "2GB"
QFORMER_SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "cross_attention_frequency"
)  # fmt: skip
SIZES = "sizes.json"
"""The model's sizes as fields of a ModelConfig."""


def write_weight_files(preset: Preset, dtype: torch.dtype, folder: Path, *, with_bin: bool, with_peer: bool) -> None:
    """Fill `folder` with `ours/` and `peer/`: a preset's random weights, stored in `dtype`.

    Args:
        preset: sizes of the model.
        dtype: number format in the files.
        folder: receives `ours/` (eva_vit.pth, qformer.pth, llama/, and llama_bin/ with .bin shards) and `peer/`.
        with_bin: write llama_bin/.
        with_peer: write peer/.
    """
    model = build_ours(preset, dtype, torch.device("cpu"))
    ours = folder / "ours"
    ours.mkdir(parents=True)
    torch.save(_published_vision(model), ours / "eva_vit.pth")
    torch.save({"model": _published_qformer(model)}, ours / "qformer.pth")
    llm: Any = model.llama_model
    llm.save_pretrained(ours / "llama", max_shard_size=SHARD_BYTES)
    _write_tokenizer(ours / "llama")
    (folder / SIZES).write_text(json.dumps(_sizes(preset, model)), encoding="utf-8")
    if with_bin:
        _write_bins(llm, ours / "llama", ours / "llama_bin")
    if with_peer:
        build_peer(preset, model, dtype).save_pretrained(folder / "peer", max_shard_size=SHARD_BYTES)


def _write_tokenizer(folder: Path) -> None:
    """The tiny model's tokenizer, with as many unused tokens behind its own as the language model embeds more."""
    source = Path(asset("tiny")) / "llama"
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(source / name, folder / name)
    tokenizer = ModelProto.FromString((source / "tokenizer.model").read_bytes())
    for number in range(len(tokenizer.pieces), VOCABULARY):
        tokenizer.pieces.add(piece=f"<unused {number}>", type=ModelProto.SentencePiece.UNUSED)
    (folder / "tokenizer.model").write_bytes(tokenizer.SerializeToString())


def _published_vision(model: MiniGPT4) -> dict[str, Tensor]:
    """The backbone with what the published file carries beyond it: a last block, the final norm and a head."""
    assert model.visual_encoder is not None
    state = dict(model.visual_encoder.backbone.state_dict())
    blocks = len(model.visual_encoder.backbone.blocks)
    last = f"blocks.{blocks - 1}."
    extra = {name.replace(last, f"blocks.{blocks}."): t.clone() for name, t in state.items() if name.startswith(last)}
    width, like = model.visual_encoder.width, state["pos_embed"]
    ends = {"norm.weight": (width,), "norm.bias": (width,), "head.weight": (1000, width), "head.bias": (1000,)}
    return state | extra | {name: torch.zeros(shape, dtype=like.dtype) for name, shape in ends.items()}


def _published_qformer(model: MiniGPT4) -> dict[str, Tensor]:
    """The query branch with the text branch and the T5 projection that BLIP-2's file carries beside it."""
    assert model.bridge is not None
    state = model.bridge.published_state()
    width, like = model.bridge.width, state["query_tokens"]
    extra = {
        "Qformer.bert.embeddings.word_embeddings.weight": (30523, width),
        "Qformer.bert.embeddings.position_embeddings.weight": (512, width),
        "t5_proj.weight": (4096, width),
        "t5_proj.bias": (4096,),
    }
    for layer in range(len(model.bridge.bert.encoder.layer)):
        extra[f"Qformer.bert.encoder.layer.{layer}.intermediate.dense.weight"] = (4 * width, width)
        extra[f"Qformer.bert.encoder.layer.{layer}.output.dense.weight"] = (width, 4 * width)
    return state | {name: torch.zeros(shape, dtype=like.dtype) for name, shape in extra.items()}


def _write_bins(llm: nn.Module, source: Path, folder: Path) -> None:
    folder.mkdir()
    for file in source.iterdir():
        if "safetensors" not in file.name:
            shutil.copy(file, folder / file.name)
    state = llm.state_dict()
    split = split_torch_state_dict_into_shards(
        state, filename_pattern="pytorch_model{suffix}.bin", max_shard_size=SHARD_BYTES
    )
    for file_name, names in split.filename_to_tensors.items():
        torch.save({name: state[name] for name in names}, folder / file_name)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")


def _sizes(preset: Preset, model: MiniGPT4) -> dict[str, Any]:
    assert model.bridge is not None
    qformer = model.bridge.bert.config.to_diff_dict()
    return {
        "vit_model": "eva_giant_patch14_224",
        "vit_blocks": preset.vit_blocks,
        "vit_args": {
            "embed_dim": preset.vit_width,
            "num_heads": preset.vit_heads,
            "mlp_ratio": preset.vit_mlp / preset.vit_width,
            "patch_size": preset.patch,
        },
        "q_former_args": {key: qformer[key] for key in QFORMER_SIZES if key in qformer},
        "num_query_token": preset.queries,
        "image_size": IMAGE_SIZE,
    }


def model_config(folder: Path, llm: str) -> ModelConfig:
    """The configuration of the model in `folder`; `llm` is `llama` or `llama_bin`."""
    ours = folder / "ours"
    return ModelConfig(
        llama_model=str(ours / llm),
        vit_weights=str(ours / "eva_vit.pth"),
        q_former_model=str(ours / "qformer.pth"),
        **json.loads((folder / SIZES).read_text(encoding="utf-8")),
    )

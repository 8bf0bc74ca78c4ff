"""Load one model in a process of its own and report; started by benchmarks.load, which watches its memory."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from torch import nn
from transformers import Blip2ForConditionalGeneration
from transformers.utils import logging as transformers_logging

from benchmarks.weight_files import model_config
from minigpt4.models.loading import build_model

PAGE_BYTES = 4096
KINDS = ("ours", "ours, .bin shards", "peer")


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def load(kind: str, folder: Path, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The complete model: vision encoder, Q-Former, language model and projection."""
    if kind == "peer":
        peer: nn.Module = Blip2ForConditionalGeneration.from_pretrained(
            folder / "peer", dtype=dtype, device_map={"": device}
        )
        return peer
    llm = "llama" if kind == "ours" else "llama_bin"
    return build_model(model_config(folder, llm), device, dtype)


def read_once(model: nn.Module, device: torch.device) -> None:
    """Read something of every page of every weight, so that a mapped file has to be fetched as well."""
    for tensor in model.parameters():
        tensor.detach().reshape(-1)[:: PAGE_BYTES // tensor.element_size()].sum()
    synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("dtype")
    parser.add_argument("device")
    args = parser.parse_args()
    transformers_logging.disable_progress_bar()
    device = torch.device(args.device)
    torch.zeros(1, device=device)  # a CUDA context is no part of loading
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    model = load(args.kind, args.folder, getattr(torch, args.dtype), device)
    synchronize(device)
    loaded = time.perf_counter() - start
    read_once(model, device)
    figures = {
        "loaded": loaded,
        "read": time.perf_counter() - start,
        "weights": sum(tensor.nbytes for tensor in model.parameters()),
    }
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()

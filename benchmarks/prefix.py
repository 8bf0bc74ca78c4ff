"""Prefill of prompts with a shared prefix, which is read with each or once: python -m benchmarks.prefix"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.machine import describe_machine, interleaved
from benchmarks.presets import PRESETS, build_ours
from benchmarks.report import DTYPES, Row, add_common_arguments, prepare_device, report
from minigpt4.common.schema import GenerationConfig
from minigpt4.models import continuous_batching
from minigpt4.models.generation import TokenSampler

OWN = 50
"""Tokens of each prompt that are its own: 32 of an image, and a question."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--shared", type=int, nargs="+", default=[8, 40, 120], help="tokens that all begin with")
    add_common_arguments(parser)
    return parser.parse_args()


def first_tokens(llm: nn.Module, prompts: list[Tensor], min_shared: int) -> Callable[[], list[int]]:
    """Work that reads the prompts, up to the first token of each answer."""
    choose = TokenSampler(GenerationConfig(), ends=())

    def run() -> list[int]:
        continuous_batching.MIN_SHARED_TOKENS = min_shared
        steps = continuous_batching.generate_batch(
            llm, prompts, choose, lambda ids: True, len(prompts), max_new_tokens=1
        )
        return [ids[0] for _, ids in steps]

    return run


def main() -> None:
    args = parse_arguments()
    device, preset = prepare_device(args.device), PRESETS[args.preset]
    llm = build_ours(preset, DTYPES[args.dtype], device).llama_model
    draw = torch.Generator().manual_seed(0)
    rows: dict[str, Row] = {}
    for shared in args.shared:
        ids = torch.randint(10, 1000, (args.prompts, shared + OWN), generator=draw)
        ids[:, :shared] = ids[0, :shared]
        prompts = list(llm.get_input_embeddings()(ids.to(device)).detach())  # type: ignore[operator]
        works = {"all": first_tokens(llm, prompts, sys.maxsize), "once": first_tokens(llm, prompts, 1)}
        measured = interleaved(works, args.rounds, device)
        same = sum(map(int.__eq__, measured["all"].result, measured["once"].result))
        rows[f"{shared} shared tokens"] = {
            "read with each": measured["all"].seconds,
            "read once": measured["once"].seconds,
            "times as fast": measured["all"].seconds / measured["once"].seconds,
            "same first tokens": f"{same} of {args.prompts}",
        }
    title = f"Reading {args.prompts} prompts with {OWN} tokens of their own, {preset.name} preset, {args.dtype}"
    report(title, rows, {"machine": describe_machine(device)}, args.out)


if __name__ == "__main__":
    main()

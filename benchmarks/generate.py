"""Greedy captions beside transformers' BLIP-2 on the same weights and pictures: python -m benchmarks.generate"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.answers import make_prompts, teach
from benchmarks.machine import describe_machine, interleaved
from benchmarks.presets import IMAGE_SIZE, IMAGE_TOKEN_ID, PRESETS, build_ours, build_peer
from benchmarks.report import DTYPES, add_common_arguments, peer_dtype, report
from minigpt4.common.schema import GenerationConfig
from minigpt4.common.types import IMAGE_POSITION
from minigpt4.models.generation import Generator
from minigpt4.models.minigpt4 import MiniGPT4

Texts = list[list[int]]
MAX_NEW_TOKENS = 120


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--pictures", type=int, default=64)
    add_common_arguments(parser)
    return parser.parse_args()


@torch.no_grad()
def encoded(model: MiniGPT4, pictures: Tensor, size: int) -> Tensor:
    """The pictures' queries, computed in batches."""
    return torch.cat([model.encode_queries(batch.to(model.device)) for batch in pictures.split(size)])


def our_answers(model: MiniGPT4, prompts: Texts, pictures: Tensor | None, queries: Tensor, size: int) -> Texts:
    """As evaluation generates; from `pictures`, or where these are None from their queries."""
    seen = queries if pictures is None else encoded(model, pictures, size)
    settings = GenerationConfig(max_new_tokens=MAX_NEW_TOKENS)
    return [list(answer.token_ids) for answer in model.generate(prompts, settings, queries=seen, rows=size)]


def plain_answers(model: MiniGPT4, prompts: Texts, pictures: Tensor, size: int) -> Texts:
    """Batch by batch, padded, through transformers' `generate`."""
    settings = GenerationConfig(max_new_tokens=MAX_NEW_TOKENS)
    generator = Generator(model.llama_model, model.encoder.tokenizer, settings, stop="")
    texts = []
    for start in range(0, len(prompts), size):
        batch = slice(start, start + size)
        embeds = model._embed_prompts(prompts[batch], pictures[batch], None)
        texts += [list(answer.token_ids) for answer in generator.by_transformers(embeds)]
    return texts


@torch.no_grad()
def their_answers(peer: Any, prompts: Texts, pictures: Tensor, size: int) -> Texts:
    """The same by transformers' BLIP-2; all prompts have one length, so nothing is padded."""
    ids = torch.tensor(prompts)
    ids = torch.where(ids == IMAGE_POSITION, IMAGE_TOKEN_ID, ids)
    texts = []
    for start in range(0, len(prompts), size):
        batch = ids[start : start + size].to(peer.device)
        pixels = pictures[start : start + size].to(peer.device, peer.dtype)
        said = peer.generate(
            pixel_values=pixels,
            input_ids=batch,
            attention_mask=torch.ones_like(batch),
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            pad_token_id=2,
        )
        texts += [row[: row.index(2)] if 2 in row else row for row in said[:, batch.shape[1] :].tolist()]
    return texts


def main() -> None:
    args = parse_arguments()
    device, preset = torch.device(args.device), PRESETS[args.preset]
    ours = build_ours(preset, DTYPES[args.dtype], device)
    prompts, answers = make_prompts(ours.encoder, args.pictures)
    teach(ours.llama_model, prompts, answers)
    theirs = peer_dtype(args.dtype, device)
    peer = build_peer(preset, ours, DTYPES[theirs])
    pictures = torch.randn(args.pictures, 3, IMAGE_SIZE, IMAGE_SIZE)
    queries, size = encoded(ours, pictures, args.batch_size), args.batch_size
    said: dict[str, Texts] = {}

    def kept(name: str, work: Callable[[], Texts]) -> Callable[[], None]:
        return lambda: said.update({name: work()})

    works = {
        f"peer, {theirs}": lambda: their_answers(peer, prompts, pictures, size),
        f"ours, {args.dtype}, plain path": lambda: plain_answers(ours, prompts, pictures, size),
        f"ours, {args.dtype}": lambda: our_answers(ours, prompts, pictures, queries, size),
        f"ours, {args.dtype}, from the feature cache": lambda: our_answers(ours, prompts, None, queries, size),
    }
    seconds = interleaved({name: kept(name, work) for name, work in works.items()}, args.rounds, device)
    wanted = [answer[:-1] for answer in answers]
    slowest = median(next(iter(seconds.values())))
    rows = {
        name: {
            "seconds": median(times),
            "times as fast": slowest / median(times),
            "captions/s": args.pictures / median(times),
            "tokens/s": sum(map(len, answers)) / median(times),
            "identical texts": f"{sum(map(list.__eq__, said[name], wanted))} of {len(wanted)}",
        }
        for name, times in seconds.items()
    }
    facts = {
        "machine": describe_machine(device),
        "answers": f"{min(map(len, answers))} to {max(map(len, answers))} tokens, {sum(map(len, answers))} together",
    }
    title = f"Greedy captions of {args.pictures} pictures, {preset.name} preset, batch {size}"
    report(title, rows, facts, args.out)


if __name__ == "__main__":
    main()

"""Greedy captions beside transformers' BLIP-2 on the same weights and images: python -m benchmarks.generate"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from benchmarks.answers import make_prompts, teach
from benchmarks.machine import as_torch_is, describe_machine, interleaved
from benchmarks.presets import IMAGE_SIZE, IMAGE_TOKEN_ID, PRESETS, build_ours, build_peer
from benchmarks.report import DTYPES, add_common_arguments, peer_dtype, prepare_device, report
from minigpt4.common.schema import GenerationConfig
from minigpt4.common.types import IMAGE_POSITION
from minigpt4.models.generation import Generator
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.tasks.captioning import GROUP_BATCHES

Texts = list[list[int]]
MAX_NEW_TOKENS = 120


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--pictures", dest="images", metavar="NUMBER", type=int, default=64)
    add_common_arguments(parser)
    return parser.parse_args()


@torch.no_grad()
def encoded(model: MiniGPT4, images: Tensor, size: int) -> Tensor:
    """The images' queries, computed in batches."""
    return torch.cat([model.encode_queries(batch.to(model.device)) for batch in images.split(size)])


def our_answers(model: MiniGPT4, prompts: Texts, queries: Tensor, rows: int) -> Texts:
    """Continuous batching of `rows` prompts at a time."""
    settings = GenerationConfig(max_new_tokens=MAX_NEW_TOKENS)
    return [list(answer.token_ids) for answer in model.generate(prompts, settings, queries=queries, rows=rows)]


def plain_answers(model: MiniGPT4, prompts: Texts, images: Tensor, size: int) -> Texts:
    """Batch by batch, padded, through transformers' `generate`."""
    settings = GenerationConfig(max_new_tokens=MAX_NEW_TOKENS)
    generator = Generator(model.llama_model, model.encoder.tokenizer, settings)
    texts = []
    for start in range(0, len(prompts), size):
        batch = slice(start, start + size)
        embeds = model.embed_prompts(prompts[batch], images[batch], None)
        texts += [list(answer.token_ids) for answer in generator.generate_with_transformers(embeds)]
    return texts


@torch.no_grad()
def their_answers(peer: Any, prompts: Texts, images: Tensor, size: int) -> Texts:
    """The same by transformers' BLIP-2; all prompts have one length, so nothing is padded."""
    ids = torch.tensor(prompts)
    ids = torch.where(ids == IMAGE_POSITION, IMAGE_TOKEN_ID, ids)
    texts = []
    for start in range(0, len(prompts), size):
        batch = ids[start : start + size].to(peer.device)
        pixels = images[start : start + size].to(peer.device, peer.dtype)
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
    device, preset = prepare_device(args.device), PRESETS[args.preset]
    ours = build_ours(preset, DTYPES[args.dtype], device)
    prompts, answers = make_prompts(ours.encoder, args.images)
    teach(ours.llama_model, prompts, answers)
    theirs = peer_dtype(args.dtype, device)
    peer = build_peer(preset, ours, DTYPES[theirs])
    images = torch.randn(args.images, 3, IMAGE_SIZE, IMAGE_SIZE)
    queries, size = encoded(ours, images, args.batch_size), args.batch_size
    rows = GROUP_BATCHES * size  # as evaluation does
    name = f"ours, {args.dtype}"
    works = {
        f"peer, {theirs}, {size} at a time": as_torch_is(lambda: their_answers(peer, prompts, images, size)),
        f"peer, {theirs}, {rows} at a time": as_torch_is(lambda: their_answers(peer, prompts, images, rows)),
        "the same with our matrix products": lambda: their_answers(peer, prompts, images, rows),
        f"{name}, plain path, {size} at a time": lambda: plain_answers(ours, prompts, images, size),
        f"{name}, {size} rows": lambda: our_answers(ours, prompts, encoded(ours, images, size), size),
        f"{name}, {rows} rows": lambda: our_answers(ours, prompts, encoded(ours, images, size), rows),
        f"{name}, {rows} rows, from the feature cache": lambda: our_answers(ours, prompts, queries, rows),
    }
    measured = interleaved(works, args.rounds, device)
    wanted = [answer[:-1] for answer in answers]
    first = next(iter(measured.values())).seconds
    figures = {
        name: {
            "seconds": one.seconds,
            "times as fast": first / one.seconds,
            "captions/s": args.images / one.seconds,
            "tokens/s": sum(map(len, answers)) / one.seconds,
            "identical texts": f"{sum(map(list.__eq__, one.result, wanted))} of {len(wanted)}",
        }
        for name, one in measured.items()
    }
    facts = {
        "machine": describe_machine(device),
        "answers": f"{min(map(len, answers))} to {max(map(len, answers))} tokens, {sum(map(len, answers))} together",
    }
    title = f"Greedy captions of {args.images} images, {preset.name} preset, batch {size}"
    report(title, figures, facts, args.out)


if __name__ == "__main__":
    main()

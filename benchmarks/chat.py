"""How long a user waits for the first text, beside the least time that the prompt takes.

`python -m benchmarks.chat` measures the tiny model, `--cfg-path X` any other.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from PIL import Image

from benchmarks.machine import describe_machine, interleaved
from minigpt4.api import DESCRIBE, LoadedModel, from_config
from minigpt4.common.cli import add_config_arguments, exit_on_error, read_config

ROUNDS = 30


@torch.inference_mode()
def prefill(model: LoadedModel, pixels: torch.Tensor, ids: list[int]) -> Any:
    """Vision, Q-Former, projection and one pass of the language model over the prompt, by transformers itself."""
    network = model.model
    queries = network.encode_queries(pixels.to(network.device))
    (embeds,) = network.embed_prompts([ids], None, queries)
    return network.llama_model(inputs_embeds=embeds[None], use_cache=True, logits_to_keep=1).logits


@exit_on_error()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser, required=False)
    parser.add_argument("--ckpt", metavar="FILE")
    args = parser.parse_args()
    model = from_config(read_config(args).config, args.ckpt)
    image = Image.effect_noise((640, 480), 80).convert("RGB")
    pixels = model.image_processor(image)[None]
    ids = model.model.encoder.prompt(f"<Img><ImageHere></Img> {DESCRIBE}")

    def first_token() -> None:
        stream = model.stream(image)
        next(stream)
        stream.close()  # type: ignore[attr-defined]

    works = {
        "image": lambda: model.image_processor(image),
        "prefill": lambda: prefill(model, pixels, ids),
        "first": first_token,
        "answer": lambda: model.describe(image),
    }
    taken = {name: one.seconds for name, one in interleaved(works, ROUNDS, model.model.device).items()}
    print(describe_machine(model.model.device))
    print(f"prompt of {len(ids)} tokens; medians of {ROUNDS} in turns")
    print(f"image to tensor              {1000 * taken['image']:8.2f} ms")
    print(f"prefill, by transformers     {1000 * taken['prefill']:8.2f} ms")
    print(f"first text of the stream     {1000 * taken['first']:8.2f} ms, with the image")
    print(f"complete answer              {1000 * taken['answer']:8.2f} ms")
    print(f"first text / (image + prefill): {taken['first'] / (taken['image'] + taken['prefill']):.2f}")


if __name__ == "__main__":
    main()

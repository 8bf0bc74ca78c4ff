"""What stock transformers computes with an exported folder: a script that imports nothing of this package.

`python reload.py FOLDER WORK` reads WORK/request.json and .safetensors and writes WORK/reply.json and .safetensors.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, logging, pipeline

ROWS = 8
"""Prompts answered at a time."""


def main(folder: str, work: str) -> None:
    """Load the folder, compute what the request names, and write the reply."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.backends.cudnn.allow_tf32 = False
    request = json.loads(Path(work, "request.json").read_text(encoding="utf-8"))
    given = load_file(Path(work, "request.safetensors"))
    device, dtype = request["device"], getattr(torch, request["dtype"])
    loaded: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    model, report = loaded[0].to(device).eval(), loaded[1]
    processor = AutoProcessor.from_pretrained(folder)
    tokenizer = processor.tokenizer
    strings = [tokenizer.encode(text, add_special_tokens=False) for text in request["strings"]]
    tensors = {name: _pixels(processor, request[name]) for name in ("images", "exact")}
    with torch.inference_mode():
        pixels = given["pixels"].to(device, dtype)
        ids = given["ids"].to(device).expand(len(pixels), -1)
        tensors["embeds"] = model.get_image_features(pixels, return_dict=True).pooler_output.float().cpu()
        tensors["logits"] = model(input_ids=ids, pixel_values=pixels).logits.float().cpu()
    asked = [_asked(request["question"], image) for image in request["exact"]]
    settings = {"max_new_tokens": request["max_new_tokens"], "do_sample": False, "num_beams": 1}
    settings["begin_suppress_tokens"] = request["begin_suppress_tokens"]
    stop = {"stop_strings": [request["stop"]], "tokenizer": tokenizer} if request["stop"] else {}
    texts: list[str] = []
    for start in range(0, len(asked), ROWS):
        texts += _answers(model, processor, asked[start : start + ROWS], **settings, **stop)
    talks = [_answers(model, processor, [talk], **settings, **stop)[0] for talk in request["talks"]]
    padded = _answers(model, processor, request["padded"], **settings, **stop)
    describe: Any = pipeline("image-text-to-text", model=model, processor=processor)
    piped = describe(text=asked[0], return_full_text=False, generate_kwargs=settings)[0]["generated_text"]
    stated = json.loads(Path(folder, "generation_config.json").read_text(encoding="utf-8"))
    stated.pop("transformers_version", None)
    in_force = model.language_model.generation_config
    ends = in_force.eos_token_id if isinstance(in_force.eos_token_id, list) else [in_force.eos_token_id]
    wrong = {name for name in stated if getattr(in_force, name) != stated[name]}
    wrong |= set() if set(request["ends"]) <= set(ends) else {"eos_token_id"}
    reply = {
        "faults": {
            "weights by name": sorted(str(name) for kind in report for name in report[kind] if "keys" in kind),
            "generation settings": sorted(wrong),
        },
        "prompts": [_encoded(processor, prompt) for prompt in request["prompts"]],
        "strings": strings,
        "decoded": [tokenizer.decode(row, skip_special_tokens=True) for ids in strings for row in (ids, ids[:-1])],
        "texts": texts,
        "talks": talks,
        "padded": padded,
        "pipeline": [piped],
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, Path(work, "reply.safetensors"))
    Path(work, "reply.json").write_text(json.dumps(reply), encoding="utf-8")


def _asked(question: str, image: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", "path": image}, {"type": "text", "text": question}]}]


def _pixels(processor: Any, paths: list[str]) -> torch.Tensor:
    loaded = [processor.image_processor.fetch_images(path) for path in paths]
    return torch.cat([processor.image_processor(image, return_tensors="pt")["pixel_values"] for image in loaded])


def _encoded(processor: Any, prompt: list[dict[str, Any]]) -> list[int]:
    ids: list[int] = processor.apply_chat_template(
        prompt, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
    )["input_ids"][0].tolist()
    return ids


def _answers(model: Any, processor: Any, prompts: list[Any], **settings: Any) -> list[str]:
    inputs = processor.apply_chat_template(
        prompts,
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    ).to(model.device, dtype=model.dtype)
    generated = model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]
    texts: list[str] = processor.batch_decode(generated, skip_special_tokens=True)
    return texts


if __name__ == "__main__":
    main(*sys.argv[1:])

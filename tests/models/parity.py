"""A folder of published-layout weights with the original implementation's inputs and outputs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minigpt4.common.schema import GenerationConfig, LoraConfig, ModelConfig
from minigpt4.common.types import Batch, Encoded, Sample
from minigpt4.datasets.loaders import collate
from minigpt4.models.loading import build_model
from minigpt4.models.minigpt4 import MiniGPT4

CPU = torch.device("cpu")


def model_config(folder: Path, **changes: Any) -> ModelConfig:
    """The configuration that loads a fixture folder's weights."""
    sizes = json.loads((folder / "config.json").read_text())
    vit = sizes["vit"]
    values: dict[str, Any] = {
        "arch": sizes["arch"],
        "image_size": sizes["image_size"],
        "vit_weights": str(folder / "eva_vit.pth"),
        "vit_blocks": vit["depth"],
        "vit_args": {key: vit[key] for key in ("embed_dim", "num_heads", "mlp_ratio")} | {"patch_size": sizes["patch"]},
        "llama_model": str(folder / "llama"),
        "ckpt": str(folder / "minigpt4.pth"),
        "prompt_template": sizes["prompt_template"],
        "end_sym": sizes["end_sym"],
        "max_txt_len": sizes["max_txt_len"],
        "max_context_len": sizes["max_context_len"],
    }
    if "qf" in sizes:
        qf = dict(sizes["qf"])
        qf["cross_attention_frequency"] = qf.pop("cross_attention_freq")
        del qf["encoder_width"]
        values |= {"q_former_model": str(folder / "qformer.pth"), "q_former_args": qf}
        values["num_query_token"] = sizes["n_query"]
    else:
        values["has_qformer"] = False
    if "lora" in sizes:
        values["lora"] = LoraConfig(**sizes["lora"], dropout=0.0, targets=sizes["lora_target_modules"])
    return ModelConfig(**values | changes)


@dataclass(frozen=True)
class Case:
    """One fixture folder."""

    folder: Path

    def _json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    @cached_property
    def config(self) -> dict[str, Any]:
        return self._json("config.json")

    @cached_property
    def inputs(self) -> dict[str, Any]:
        return self._json("inputs.json")

    @cached_property
    def expected(self) -> dict[str, Any]:
        return self._json("expected.json")

    @cached_property
    def tokens(self) -> dict[str, Any]:
        return self._json("tokens.json")

    @cached_property
    def arrays(self) -> Any:
        return np.load(self.folder / "expected.npz")

    @cached_property
    def images(self) -> Any:
        return np.load(self.folder / "inputs.npz")

    @cached_property
    def pixels(self) -> Tensor:
        return torch.from_numpy(self.images["pixel_values"])

    @cached_property
    def model(self) -> MiniGPT4:
        return build_with(self)

    @property
    def generations(self) -> list[str]:
        return [name for name, value in self.expected.items() if isinstance(value, dict) and "ids" in value]

    def named_batch(self, name: str) -> Batch:
        """A batch of the inputs by its name: single questions, conversations, or several images to a question."""
        inputs = self.inputs[name]
        if "conv_q" in inputs:
            questions, answers = (
                [text.split(inputs["connect_sym"]) for text in inputs[key]] for key in ("conv_q", "conv_a")
            )
            images = [[index] for index in inputs["images"]]
        elif "length" in inputs:
            questions, answers = ([[text] for text in inputs[key]] for key in ("instruction", "answer"))
            images = [row[:used] for row, used in zip(inputs["images"], inputs["length"], strict=True)]
        else:
            return self.batch(inputs["images"], inputs["instruction"], inputs["answer"])
        samples = []
        for row, (asked, said, own) in enumerate(zip(questions, answers, images, strict=True)):
            *earlier, (question, answer) = zip(asked, said, strict=True)
            encoded = self.model.encoder.encode_example(question, answer, len(own), "sample", earlier)
            samples.append(Sample(image_id=str(row), images=tuple(self.pixels[own]), encoded=encoded))
        return collate(samples)

    def batch(self, images: list[int] | None, instructions: str | list[str], answers: list[str]) -> Batch:
        """Instructions and answers, as training makes them into a batch; MiniGPT-4's instructions are rendered."""
        texts = [instructions] * len(answers) if isinstance(instructions, str) else instructions
        before, after = self.model.encoder.template.pattern.split("{}")
        samples = []
        for row, (text, answer) in enumerate(zip(texts, answers, strict=True)):
            instruction = text
            if self.config["arch"] == "minigpt4":
                assert text.startswith(before) and text.endswith(after)
                instruction = text[len(before) : len(text) - len(after)]
            own = () if images is None else (self.pixels[images[row]],)
            encoded: Encoded = self.model.encoder.encode_example(instruction, answer, num_images=len(own))
            samples.append(Sample(image_id=str(row), images=own, encoded=encoded))
        return collate(samples)

    def training_batch(self) -> Batch:
        """Two samples with an image each."""
        inputs = self.inputs["train_list"]
        return self.batch(inputs["images"], inputs["instruction"], inputs["answer"])

    def settings(self, kwargs: dict[str, Any]) -> GenerationConfig:
        """Our settings for the original's; its min_length counted BOS, ours counts new tokens only."""
        same = ("max_new_tokens", "num_beams", "do_sample", "repetition_penalty", "length_penalty")
        return GenerationConfig(min_new_tokens=kwargs["min_length"] - 1, **{key: kwargs[key] for key in same})

    def new_tokens(self, row: list[int]) -> list[int]:
        """A row of the original's ids without its BOS, and without EOS and the zeros that follow it."""
        ids = row[1:]
        eos = self.tokens["eos"]
        return ids[: ids.index(eos)] if eos in ids else ids


def build_with(case: Case, **changes: Any) -> MiniGPT4:
    """The model of a fixture folder with some settings changed, in float32 on the CPU."""
    return build_model(model_config(case.folder, **changes), CPU, torch.float32)
